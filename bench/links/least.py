"""The bytes that a boot cannot do without, by any program: counted from a recorded boot."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import zstandard

from bench.guests import LIMIT, LOGIN
from bench.harness import Bench
from bench.trace import Read, record
from p2pcloop.units import BLOCK_SIZE

GROUP = 1 << 20
LEVEL = 19
_HEADER = 128  # a cloop file begins with a shell script of this size; then two 32-bit numbers

Run = tuple[int, int]
"""The first of some blocks in a row, and their number."""


@dataclass(frozen=True, slots=True)
class Least:
    """Bytes, by two ways of keeping an image.

    Attributes:
        packed: W: the touched blocks, packed as well as can be.
        touched: the cloop's compressed chunks that are touched.
    """

    packed: int
    touched: int


def recorded_boot(bench: Bench, kept: Path | None = None) -> list[Read]:
    """The reads of a guest until the login prompt, with their times.

    Args:
        kept: a file; a boot that it holds is taken, else a boot is recorded and written to it.
    """
    if kept and kept.exists():
        return [Read(**fields) for fields in json.loads(kept.read_text())]
    place = bench.work / "record"
    place.mkdir(exist_ok=True)
    reads = record(replace(bench, work=place), lambda console: console.expect(LOGIN, LIMIT))
    if kept:
        kept.write_text(json.dumps([asdict(read) for read in reads]))
    return reads


def least_of(bench: Bench, reads: Sequence[Read]) -> Least:
    """Bytes that these reads need."""
    ranges = [(read.offset, read.length) for read in reads]
    return Least(
        packed_bytes(bench.image, first_touches(ranges)), touched_bytes(bench.cloop, ranges)
    )


def touched_bytes(cloop: Path, reads: list[tuple[int, int]]) -> int:
    """Compressed bytes of the blocks of a V2.0 cloop that reads (offset, length) touch."""
    with cloop.open("rb") as file:
        block_size, count = struct.unpack(">II", file.read(_HEADER + 8)[_HEADER:])
        offsets = struct.unpack(f">{count + 1}Q", file.read(8 * (count + 1)))
    touched = {
        block
        for offset, length in reads
        for block in range(offset // block_size, (offset + length - 1) // block_size + 1)
    }
    return sum(offsets[block + 1] - offsets[block] for block in touched)


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
