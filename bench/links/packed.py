"""W, the least that a boot can fetch: the blocks that it touches, packed as well as can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from p2pcloop.units import BLOCK_SIZE

GROUP = 1 << 20
LEVEL = 19

Run = tuple[int, int]
"""The first of some blocks in a row, and how many they are."""


def packed_bytes(image: Path, runs: Iterable[Run]) -> int:
    """Bytes of these blocks of a raw image, in order, in groups of 1 MiB by zstd -19.

    Args:
        runs: in order of first touch, none twice; see `first_touches`.
    """
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    size, group = 0, bytearray()
    with image.open("rb") as file:
        for first, count in runs:
            file.seek(first * BLOCK_SIZE)
            group += file.read(count * BLOCK_SIZE)
            while len(group) >= GROUP:
                size += len(compressor.compress(bytes(group[:GROUP])))
                del group[:GROUP]
    return size + (len(compressor.compress(bytes(group))) if group else 0)


def first_touches(reads: Iterable[tuple[int, int]]) -> Iterator[Run]:
    """The runs of blocks that reads (offset, length; in bytes) are the first to touch, in order."""
    touched: set[int] = set()
    for offset, length in reads:
        end = -(-(offset + length) // BLOCK_SIZE)
        new = [b for b in range(offset // BLOCK_SIZE, end) if b not in touched]
        touched.update(new)
        yield from _runs(new)


def _runs(blocks: list[int]) -> Iterator[Run]:
    """Ascending blocks as runs."""
    start = 0
    for at in range(1, len(blocks) + 1):
        if at == len(blocks) or blocks[at] != blocks[at - 1] + 1:
            yield blocks[start], at - start
            start = at
