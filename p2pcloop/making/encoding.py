"""The sizes and the compression of the chunks of deltas."""

from __future__ import annotations

import enum
import threading

import zstandard

from p2pcloop.formats.chunk_table import Codec
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE

_SMALL = 16 << 20
"""Bytes of content up to which it is packed a little smaller; that takes 1 s on two cores."""

_WORTH_IT = 0.97
"""A chunk is stored as it is if a fast trial does not make it smaller than this share."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of chunks.

    Attributes:
        least: blocks of a chunk before it may end.
        most: blocks of a chunk.
        end_mask: a block whose checksum has none of these bits ends a chunk.
    """

    least: int
    most: int
    end_mask: int


DELTA = Shape(96, 128, 15)
"""Long chunks: 512 KiB pack to 1.1 times, 256 KiB to 1.15 times what one stream does."""

WHOLE = Shape(16, 16, 0)
"""For an image without a base, and for a state: the unit in which a guest reads. The memory of a
guest packs to 1.1 times what `DELTA` does, in a fifth of the time (docs/formats/state.md)."""


class Level(enum.Enum):
    """How hard a chunk is compressed."""

    DELTA = enum.auto()
    SMALL = enum.auto()
    WHOLE = enum.auto()


_TABLES = {"window_log": 19, "chain_log": 18, "hash_log": 16, "min_match": 3}
"""Tables of the search, which about fit into a processor's own cache. Tables of two and eight times
the length make packs 0.2 percent smaller, and take a third more time."""

_ZSTD = {
    Level.DELTA: zstandard.ZstdCompressionParameters.from_level(
        16,
        source_size=DELTA.most * BLOCK_SIZE,
        strategy=zstandard.STRATEGY_BTOPT,
        search_log=3,
        target_length=32,
        **_TABLES,
    ),
    Level.SMALL: zstandard.ZstdCompressionParameters.from_level(
        16,
        source_size=DELTA.most * BLOCK_SIZE,
        strategy=zstandard.STRATEGY_BTULTRA,
        search_log=4,
        target_length=64,
        **_TABLES,
    ),
    Level.WHOLE: zstandard.ZstdCompressionParameters.from_level(
        9, source_size=WHOLE.most * BLOCK_SIZE
    ),
}
"""`Level.DELTA` makes 20 to 30 MB/s on two cores (docs/measurements/2026-11-packing.md)."""


class _Compressors(threading.local):
    """zstd contexts for each thread: one must not be used by two at once."""

    def __init__(self) -> None:
        self.trial = zstandard.ZstdCompressor(level=1)
        self.best = {
            how: zstandard.ZstdCompressor(compression_params=parameters)
            for how, parameters in _ZSTD.items()
        }


_compressors = _Compressors()


def choose_level(shape: Shape, size: int) -> Level:
    """The level for a layer of chunks of a shape with `size` bytes of content in all."""
    if shape is not DELTA:
        return Level.WHOLE
    return Level.SMALL if size <= _SMALL else Level.DELTA


def encode(level: Level, content: bytes) -> tuple[Codec, bytes]:
    """Return how the content of a chunk is stored, and its stored bytes."""
    if len(_compressors.trial.compress(content)) > _WORTH_IT * len(content):
        return Codec.NONE, content
    return Codec.ZSTD, _compressors.best[level].compress(content)
