"""Packs the blocks that differ from a base: the map and the pack of a delta.

New blocks are put together in chunks of up to 512 KiB. A chunk ends at a block that its content
selects, so that equal runs of blocks give equal chunks. Each block is stored once. The delta refers
to blocks that the base has at other places, and to whole chunks that a known layer has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import BinaryIO

from p2pcloop.formats.block_map import MAX_BLOCKS_PER_CHUNK, ZERO_CHUNK, Run
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.index import MAX_SOURCES
from p2pcloop.formats.seal import Seal
from p2pcloop.frozen import dataclass
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.build import Progress
from p2pcloop.making.changes import REPEATED, Changes, Stretch, Target, checksum, stretches_of
from p2pcloop.making.delta_index import Sources, build_delta_index
from p2pcloop.making.encoding import DELTA, Level, Shape, choose_level, encode
from p2pcloop.making.moved import Place
from p2pcloop.making.similar import SEGMENT, Row, side_by_side
from p2pcloop.parallel import ordered_map
from p2pcloop.units import BLOCK_SIZE

_READ_BLOCKS = 256
MIN_REFERRED = 2
"""Blocks in a row: to read a single block of the base, a reader must fetch a whole chunk."""

Find = Callable[[int, memoryview, int, Place | None], Place | None]
"""Finds the chunk of the base that holds a block. It is given the block's number, its content, its
checksum, and the place that follows the one of the block before it."""

KnownChunk = Callable[[bytes], tuple[bytes, Chunk] | None]
"""Finds a chunk by its id: returns the id of the layer whose pack holds it, and its entry there."""


def nothing_moved(_block: int, _content: memoryview, _crc: int, _expected: Place | None) -> None:
    """Finds no block in the base."""


def nothing_known(_chunk_id: bytes) -> None:
    """Knows no chunk of other layers."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """The blocks and chunks of other layers that a delta refers to, instead of packing them.

    Attributes:
        base: the image whose chunks `find` finds blocks in; None for none.
        find: finds single blocks.
        in_a_row: blocks that must lie in `base` one after the other to be referred to.
        known: finds whole chunks.
        layers: ids of the layers that the image names already; the new layer is none of them.
        more_sources: how many other layers it may name.
    """

    base: MergedImage | None = None
    find: Find = nothing_moved
    in_a_row: int = MIN_REFERRED
    known: KnownChunk = nothing_known
    layers: Sequence[bytes] = ()
    more_sources: int = MAX_SOURCES


@dataclass
class Delta:
    """A delta that was packed.

    Attributes:
        index: bytes of the layer's index.
        pack_length: bytes of its pack.
        stored_blocks: blocks that the pack holds.
        referred_blocks: blocks that lie in packs of other layers.
        repeated_blocks: blocks that are equal to one in this pack.
        zero_blocks: blocks that read as zeros.
        sources: ids of the layers referred to.
    """

    index: bytes
    pack_length: int
    stored_blocks: int
    referred_blocks: int
    repeated_blocks: int
    zero_blocks: int
    sources: Sequence[bytes]


def pack_delta(
    changes: Changes,
    target: Target,
    pack: BinaryIO,
    progress: Progress,
    reuse: Reuse,
    *,
    seal: Seal | None = None,
    shape: Shape = DELTA,
) -> Delta:
    """Write the pack of a delta and return its index.

    Args:
        changes: what differs.
        target: the blocks that differ are read again, on this thread.
        pack: the pack is written to it, from its start.
        progress: called with the bytes of the target that are packed.
        reuse: what need not be packed.
        seal: seals the layer of a private image.
        shape: of the chunks.

    Raises:
        FormatError: more runs or chunks than a layer may have.
        P2pcloopError: the target could not be read.
    """
    sources = Sources(reuse.layers, reuse.more_sources)
    work = _Packer(changes, target, reuse, sources, shape)
    level = choose_level(shape, changes.blocks * BLOCK_SIZE)
    length = done = 0
    for new, codec, encoded in ordered_map(partial(_encode, level), work.new_chunks()):
        stored = encoded if seal is None else seal.seal_chunk(length, encoded)
        pack.write(stored)
        blocks = len(new.content) // BLOCK_SIZE
        work.chunks[new.number] = Chunk(length, len(stored), blocks, codec, new.id)
        length += len(stored)
        done += blocks
        progress(done * BLOCK_SIZE)
    zeros = [Run(first, count, ZERO_CHUNK, 0, 0) for first, count in stretches_of(changes.zeros)]
    index = build_delta_index(
        sorted(work.runs + zeros, key=lambda run: run.start),
        work.chunks,
        sources,
        image_size=target.size,
        pack_length=length,
        seal=seal,
    )
    return Delta(
        index, length, done, work.referred, work.repeated, changes.zero_blocks, sources.named
    )


@dataclass(frozen=True, slots=True)
class _New:
    """A chunk that has to be packed."""

    number: int
    id: bytes
    content: bytes


class _Packer:
    """Cuts the changed blocks into chunks and runs."""

    def __init__(
        self,
        changes: Changes,
        target: Target,
        reuse: Reuse,
        sources: Sources,
        shape: Shape,
    ) -> None:
        self.chunks: list[Chunk] = []
        self.runs: list[Run] = []
        self.referred = 0
        self._changes = changes
        self._target = target
        self._reuse = reuse
        self._sources = sources
        self._shape = shape
        self._open = bytearray()
        self._number = -1
        self._seen: dict[bytes, tuple[int, int]] = {}
        self._later: list[tuple[int, bytes]] = []
        self._numbers: dict[tuple[int, int], int] = {}

    @property
    def repeated(self) -> int:
        """Blocks that are equal to one in this pack."""
        return len(self._later)

    def new_chunks(self) -> Iterator[_New]:
        """Yield the chunks that have to be packed; keep runs and all other chunks on the way."""
        for first, content in self._in_order():
            for block, part in enumerate(_blocks(content), first):
                yield from self._append(block, part)
        yield from self._end_chunk()
        for block, digest in self._later:
            self._map(block, *self._seen[digest], MAX_BLOCKS_PER_CHUNK)

    def _in_order(self) -> Iterator[Row]:
        """Rows of new blocks, in the order of the pack."""
        if self._shape is not DELTA:
            yield from self._new_rows()
            return
        for first, count in side_by_side(self._new_rows(), self._shape.most):
            yield first, memoryview(self._target.read(first, count))

    def _new_rows(self) -> Iterator[Row]:
        """Rows of new blocks, in the order of the device; map all other changes on the way."""
        for first, count in stretches_of(self._changes.data):
            for at in range(first, first + count, _READ_BLOCKS):
                content = memoryview(self._target.read(at, min(_READ_BLOCKS, first + count - at)))
                for start, number in _rows(self._choose(at, _blocks(content))):
                    offset = (start - at) * BLOCK_SIZE
                    yield start, content[offset : offset + number * BLOCK_SIZE]

    def _choose(self, first: int, blocks: Sequence[memoryview]) -> Iterator[int]:
        """Yield the blocks that are new; the others are mapped, now or later."""
        crcs = [checksum(content) for content in blocks]
        places = self._find_places(first, blocks, crcs)
        for block, (content, crc, place) in enumerate(
            zip(blocks, crcs, places, strict=True), first
        ):
            number = None if place is None else self._refer(place)
            if place is not None and number is not None:
                self.referred += 1
                self._map(block, number, place.within, place.blocks)
                continue
            if self._changes.mark(crc) == REPEATED:
                digest = hashlib.sha256(content).digest()
                if digest in self._seen:
                    self._later.append((block, digest))
                    continue
                self._seen[digest] = _NOWHERE
            yield block

    def _append(self, block: int, content: memoryview) -> Iterator[_New]:
        """Put a block into the chunk that is being filled; the chunk may end there."""
        if not self._open:
            self._number = len(self.chunks)
            self.chunks.append(_UNFINISHED)
        within = len(self._open) // BLOCK_SIZE
        self._open += content
        self._map(block, self._number, within, MAX_BLOCKS_PER_CHUNK)
        crc = checksum(content)
        if self._changes.mark(crc) == REPEATED:
            self._seen[hashlib.sha256(content).digest()] = self._number, within
        may_end = within + 1 >= self._shape.least and not crc & self._shape.end_mask
        if may_end or within + 1 == self._shape.most:
            yield from self._end_chunk()

    def _end_chunk(self) -> Iterator[_New]:
        if not self._open:
            return
        content = bytes(self._open)
        self._open.clear()
        chunk_id = hashlib.sha256(content).digest()
        known = self._reuse.known(chunk_id)
        source = None if known is None else self._sources.number(known[0])
        if known is None or source is None:
            yield _New(self._number, chunk_id, content)
        else:
            self.referred += len(content) // BLOCK_SIZE
            self.chunks[self._number] = replace(known[1], source=source)

    def _find_places(
        self, first: int, blocks: Sequence[memoryview], crcs: Sequence[int]
    ) -> list[Place | None]:
        """Where blocks lie in the base; None for those of a row that is too short."""
        base = self._reuse.base
        places: list[Place | None] = []
        expected: Place | None = None
        row = 0
        for block, (content, crc) in enumerate(zip(blocks, crcs, strict=True), first):
            place = self._reuse.find(block, content, crc, expected)
            if place is None or place != expected:
                self._forget_short(places, row)
                row = 0
            row += place is not None
            places.append(place)
            expected = None if place is None or base is None else place.following(base)
        self._forget_short(places, row)
        return places

    def _forget_short(self, places: list[Place | None], row: int) -> None:
        """Drop the last places if too few follow each other to be worth a reference."""
        if 0 < row < self._reuse.in_a_row:
            places[-row:] = [None] * row

    def _refer(self, place: Place) -> int | None:
        """The number of a chunk of the base in this table; None if it cannot be referred to: it is
        part of a chain, or no more sources may be named."""
        key = place.layer, place.chunk
        if key not in self._numbers:
            assert self._reuse.base is not None
            layer = self._reuse.base.layers[place.layer]
            chunk = layer.chunk(place.chunk)
            if chunk.chained:
                return None
            header = layer.header
            owner = header.sources[chunk.source - 1] if chunk.source else header.layer_id
            source = self._sources.number(owner)
            if source is None:
                return None
            self._numbers[key] = len(self.chunks)
            self.chunks.append(replace(chunk, source=source))
        return self._numbers[key]

    def _map(self, block: int, number: int, within: int, per_chunk: int) -> None:
        """Map a block to its place; extend the run before if the place follows."""
        if self.runs:
            last = self.runs[-1]
            chunks, position = divmod(last.within + last.count, last.per_chunk)
            follows = last.end == block and last.per_chunk == per_chunk
            if follows and (last.chunk + chunks, position) == (number, within):
                self.runs[-1] = replace(last, count=last.count + 1)
                return
        self.runs.append(Run(block, 1, number, within, per_chunk))


_UNFINISHED = Chunk(0, 0, 0, Codec.NONE, b"")
_NOWHERE = (-1, -1)
"""The place of a block that will be packed."""


def _blocks(content: memoryview) -> list[memoryview]:
    return [content[at : at + BLOCK_SIZE] for at in range(0, len(content), BLOCK_SIZE)]


def _rows(blocks: Iterable[int]) -> Iterator[Stretch]:
    """Stretches of blocks that follow each other, `SEGMENT` at most."""
    first = count = 0
    for block in blocks:
        if count and (block != first + count or count == SEGMENT):
            yield first, count
            count = 0
        if not count:
            first = block
        count += 1
    if count:
        yield first, count


def _encode(level: Level, new: _New) -> tuple[_New, Codec, bytes]:
    return new, *encode(level, new.content)
