"""How the chunks of deltas and of hot layers are cut and compressed."""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass

import zstandard

from p2pcloop.formats.chunk_table import Codec
from p2pcloop.units import BLOCK_SIZE

_SMALL = 16 << 20
"""Up to so much content is packed a little smaller; it takes a second on two cores."""

_WORTH_IT = 0.97
"""What a fast trial does not make smaller than this is stored as it is."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How chunks are made of blocks.

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
"""Of an image that lies on nothing: the unit in which a boot reads."""

HOT_BLOCKS = 64
"""Of a chunk of what boots read, in order: 256 KiB, which pack to 1.03 times what 1 MiB do, so that
a boot waits for little that it does not need just then."""


class Level(enum.Enum):
    """How hard a chunk is compressed."""

    DELTA = enum.auto()
    SMALL = enum.auto()
    WHOLE = enum.auto()
    HOT = enum.auto()


_TABLES = {"window_log": 19, "chain_log": 18, "hash_log": 16, "min_match": 3}
"""Of the search: they about fit into a processor's own cache. Twice and eight times as long ones
save 0.2 percent of the pack and take a third more time."""

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
    # Level 22, and longer searches, save 0.01 percent.
    Level.HOT: zstandard.ZstdCompressionParameters.from_level(
        19, source_size=HOT_BLOCKS * BLOCK_SIZE
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
