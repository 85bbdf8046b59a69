"""Finding the blocks of a target that differ from a base: those of an overlay, or of an image.

A whole chunk of the base is first compared by its SHA-256, so that the base's content is needed
only if something differs. Blocks of the base that cannot be fetched count as changed.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from functools import partial
from typing import Protocol

from isal import isal_zlib

from p2pcloop.formats.block_map import ZERO_CHUNK, Piece
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.scatter import Scatter
from p2pcloop.making.build import Progress
from p2pcloop.parallel import ordered_map
from p2pcloop.units import BLOCK_SIZE

_BATCH_BLOCKS = 256
"""Blocks of one item of work: so many that to hand it to a thread costs little."""

_WINDOW = 4096
"""Blocks of one look-up in the base's map."""

ZERO_BLOCK = bytes(BLOCK_SIZE)
SEEN, REPEATED = 1, 2
_FILTER_BITS = 24

Stretch = tuple[int, int]
"""First block, number of blocks."""

Supply = Callable[[Missing], bool]
"""Fetches missing ranges; returns False if they cannot be fetched now."""

checksum = isal_zlib.crc32
"""The checksum of a block. Equal checksums are only a hint: the blocks are compared."""


class Target(Protocol):
    """The device that a base and a delta together show."""

    @property
    def size(self) -> int:
        """Bytes of the device, a multiple of 4096."""

    def read(self, block: int, count: int) -> bytes:
        """Return the content of blocks; may be called on any thread."""

    def stretches(self) -> Iterable[Stretch]:
        """The stretches in which it may differ from the base, in order, without overlaps."""

    def next_data(self, block: int) -> int:
        """The next block from here on that is not known to be zeros."""


class Base:
    """The image below a delta, or none: then all blocks read as zeros."""

    def __init__(self, image: MergedImage | None, supply: Supply) -> None:
        """`supply` is called for missing ranges until it returns False for the first time."""
        self.image = image
        self._supply = supply
        self._asks = True

    def pieces(self, block: int, count: int) -> Sequence[Piece]:
        """See `BlockMap.pieces`. If the device has shrunk, the map may go beyond its end."""
        if self.image is None:
            return ((0, ZERO_CHUNK, 0, count),)
        return self.image.map.pieces(block, count)

    def chunk_id(self, piece: Piece) -> bytes | None:
        """The id of a piece's chunk, if it is the whole chunk and its entry can be read."""
        layer, number, within, blocks = piece
        assert self.image is not None
        if within:
            return None
        while True:
            try:
                chunk = self.image.layers[layer].chunk(number)
            except Missing as missing:
                if not self._fetch(missing):
                    return None
            else:
                return chunk.id if chunk.blocks == blocks else None

    def read(self, block: int, count: int, *, ask: bool = True) -> memoryview | None:
        """Return the content of blocks; None if it is missing. With `ask` it is fetched first."""
        assert self.image is not None
        data = memoryview(bytearray(count * BLOCK_SIZE))
        while missing := self.image.read_into(block * BLOCK_SIZE, len(data), Scatter([data])):
            if not ask or not self._fetch(Missing(missing)):
                return None
        return data

    def _fetch(self, missing: Missing) -> bool:
        self._asks = self._asks and self._supply(missing)
        return self._asks


@dataclass
class Changes:
    """The blocks of a target that differ from its base.

    Attributes:
        size: bytes of the target's device.
        data: first block and number of blocks, one after the other, of runs with content.
        zeros: the same, of runs that read as zeros and do not in the base.
        blocks: how many have content.
        zero_blocks: how many read as zeros.
        unknown: how many count as changed because the base's content could not be fetched.
        marks: for the upper bits of a checksum, whether no block with content has it, one has it,
            or several have. A block without a mark is not in the changes; one that is not marked
            REPEATED is in them at most once.
    """

    size: int
    data: array[int] = field(default_factory=lambda: array("I"))
    zeros: array[int] = field(default_factory=lambda: array("I"))
    blocks: int = 0
    zero_blocks: int = 0
    unknown: int = 0
    marks: bytearray = field(default_factory=lambda: bytearray(1 << _FILTER_BITS))

    def __bool__(self) -> bool:
        return self.blocks + self.zero_blocks > 0

    def mark(self, crc: int) -> int:
        """How often a block of this checksum may be in the changes: 0, SEEN or REPEATED."""
        return self.marks[crc >> (32 - _FILTER_BITS)]

    def record(self, first: int, data: memoryview, below: memoryview | None) -> None:
        """Compare blocks with the base's (None: unknown) and keep those that differ."""
        for at in range(0, len(data), BLOCK_SIZE):
            content = data[at : at + BLOCK_SIZE]
            if below is not None and content == below[at : at + BLOCK_SIZE]:
                continue
            block = first + at // BLOCK_SIZE
            if content == ZERO_BLOCK:
                self.zero_blocks += 1
                append_block(self.zeros, block)
                continue
            self.blocks += 1
            self.unknown += below is None
            append_block(self.data, block)
            crc = checksum(content) >> (32 - _FILTER_BITS)
            self.marks[crc] = REPEATED if self.marks[crc] else SEEN


def append_block(runs: array[int], block: int) -> None:
    """Add a block to stretches: to the last one if it follows that, else as a new one."""
    if runs and runs[-2] + runs[-1] == block:
        runs[-1] += 1
    else:
        runs.extend((block, 1))


def stretches_of(runs: array[int]) -> Iterator[Stretch]:
    """The stretches that `append_block` collected: `Changes.data` or `Changes.zeros`."""
    return zip(runs[0::2], runs[1::2], strict=True)


@dataclass(frozen=True, slots=True)
class _Part:
    """Blocks to compare with one piece of the base's map."""

    first: int
    count: int
    zero: bool
    chunk_id: bytes | None


def find_changes(target: Target, base: Base, progress: Progress) -> Changes:
    """Compare a target with its base.

    Args:
        target: read on worker threads.
        base: read on this thread.
        progress: is told how many bytes were compared.

    Raises:
        P2pcloopError: the target cannot be read.
        CorruptError: the base is damaged.
    """
    changes = Changes(target.size)
    for batch, differing in ordered_map(partial(_examine, target), _batches(target, base)):
        for part, data in differing:
            if part.zero:
                below: memoryview | None = memoryview(bytes(len(data)))
            else:
                # A run of zeros costs nothing, so nothing is fetched to find out whether it is new.
                below = base.read(part.first, part.count, ask=not _is_zero(data))
            changes.record(part.first, memoryview(data), below)
        progress((batch[-1].first + batch[-1].count) * BLOCK_SIZE)
    return changes


def _examine(
    target: Target, batch: Sequence[_Part]
) -> tuple[Sequence[_Part], list[tuple[_Part, bytes]]]:
    """Read blocks of the target; return the batch, and the blocks not equal by their hashes."""
    differing = []
    for part in batch:
        data = target.read(part.first, part.count)
        if part.zero:
            equal = _is_zero(data)
        else:
            equal = part.chunk_id is not None and hashlib.sha256(data).digest() == part.chunk_id
        if not equal:
            differing.append((part, data))
    return batch, differing


def _is_zero(data: bytes) -> bool:
    return data.count(0) == len(data)


def _batches(target: Target, base: Base) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    blocks = 0
    for part in _parts(target, base):
        batch.append(part)
        blocks += part.count
        if blocks >= _BATCH_BLOCKS:
            yield batch
            batch, blocks = [], 0
    if batch:
        yield batch


def _parts(target: Target, base: Base) -> Iterator[_Part]:
    """Cut the target's stretches at the borders of the base's map."""
    for first, count in target.stretches():
        block, end = first, first + count
        while block < end:
            stop = min(end, block + _WINDOW)
            pieces = list(base.pieces(block, stop - block))
            if stop < end and len(pieces) > 1:
                pieces.pop()  # it may go on: compare it whole, with the next blocks
            for piece in pieces:
                zero, size = piece[1] == ZERO_CHUNK, piece[3]
                step = _BATCH_BLOCKS if zero else size
                at, block = block, block + size
                while (at := target.next_data(at) if zero else at) < block:
                    part = min(step, block - at)
                    yield _Part(at, part, zero, None if zero else base.chunk_id(piece))
                    at += part
