"""Maps: which chunk holds which block (docs/formats/index.md).

A map is a sorted list of runs. A run says that `count` blocks of the device from `start` on lie
one after the other in consecutive chunks of `per_chunk` blocks each, beginning with block `within`
of chunk `chunk`. A whole cloop is one run (but for its holes); a scattered delta is one run for
each stretch of changed blocks. Blocks that no run holds are the lower layer's, or zeros in the
base. A run of chunk `ZERO_CHUNK` reads as zeros.

Merging joins the maps of all layers once, when an image is opened; a look-up is one bisect.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from p2pcloop.errors import FormatError
from p2pcloop.units import BLOCK_SIZE, MAX_CHUNK_SIZE

ZERO_CHUNK = 0xFFFFFFFF
MAX_COUNT = 0xFFFFFFFF
"""Blocks of one run: what its field holds, one less than the largest device has."""

MAX_BLOCKS_PER_CHUNK = MAX_CHUNK_SIZE // BLOCK_SIZE
RUN = struct.Struct("<IIIHH")
"""start, count, chunk, within, per_chunk."""


@dataclass(frozen=True, slots=True)
class Run:
    """`count` blocks from `start` on, in chunks of `per_chunk` blocks from block `within` on.

    `layer` is 0 in the map of one layer; a merged map says which layer's chunks are meant.
    """

    start: int
    count: int
    chunk: int
    within: int = 0
    per_chunk: int = 1
    layer: int = 0

    @property
    def end(self) -> int:
        """The block after the last."""
        return self.start + self.count

    def part(self, start: int, end: int) -> Run:
        """The blocks from `start` up to `end`, which lie in the run."""
        if self.chunk == ZERO_CHUNK:
            return replace(self, start=start, count=end - start)
        chunks, within = divmod(self.within + start - self.start, self.per_chunk)
        return replace(
            self, start=start, count=end - start, chunk=self.chunk + chunks, within=within
        )


def pack_runs(runs: Iterable[Run]) -> bytes:
    """Write the runs of one layer, 16 bytes each."""
    return b"".join(RUN.pack(r.start, r.count, r.chunk, r.within, r.per_chunk) for r in runs)


def unpack_runs(data: bytes, *, blocks: int, chunks: int) -> list[Run]:
    """Read the runs of one layer and check them whole.

    Args:
        data: 16 bytes a run.
        blocks: blocks of the device.
        chunks: chunks of the layer.

    Raises:
        FormatError: runs that overlap, are not in order, or point outside device or chunk table.
    """
    if len(data) % RUN.size:
        raise FormatError(f"a map of {len(data)} bytes is not a whole number of runs")
    runs = []
    end = 0
    for start, count, chunk, within, per_chunk in RUN.iter_unpack(data):
        if start < end or count == 0 or start + count > blocks:
            raise FormatError("a map has runs that overlap, are empty or point outside the device")
        end = start + count
        if chunk == ZERO_CHUNK:
            if within or per_chunk:
                raise FormatError("a run of zeros in a map names blocks within a chunk")
        elif not within < per_chunk <= MAX_BLOCKS_PER_CHUNK:
            raise FormatError("a run of a map names a block outside its chunk")
        elif chunk + (within + count - 1) // per_chunk >= chunks:
            raise FormatError("a run of a map points past the last chunk")
        runs.append(Run(start, count, chunk, within, per_chunk))
    return runs


def merge(layers: Sequence[Iterable[Run]]) -> list[Run]:
    """Join the runs of layers, base first, into one sorted list; upper layers hide lower ones.

    Runs get the number of their layer; those that follow each other without a seam are joined.
    """
    merged: list[Run] = []
    for number, runs in enumerate(layers):
        merged = _lay_over(merged, [replace(run, layer=number) for run in runs])
    return list(_join(merged))


def _lay_over(lower: list[Run], upper: list[Run]) -> list[Run]:
    """Both sorted; what of `lower` lies under `upper` is cut away."""
    result: list[Run] = []
    position = 0
    for top in upper:
        while position < len(lower) and lower[position].start < top.end:
            below = lower[position]
            if below.start < top.start:
                result.append(below.part(below.start, min(below.end, top.start)))
            if below.end > top.end:
                lower[position] = below.part(top.end, below.end)
                break
            position += 1
        result.append(top)
    return result + lower[position:]


def _join(runs: Iterable[Run]) -> Iterator[Run]:
    previous: Run | None = None
    for run in runs:
        if previous is not None and _follows(previous, run):
            previous = replace(previous, count=previous.count + run.count)
            continue
        if previous is not None:
            yield previous
        previous = run
    if previous is not None:
        yield previous


def _follows(first: Run, second: Run) -> bool:
    if first.end != second.start or first.count + second.count > MAX_COUNT:
        return False
    if first.chunk == ZERO_CHUNK or second.chunk == ZERO_CHUNK:
        return first.chunk == second.chunk
    if (first.layer, first.per_chunk) != (second.layer, second.per_chunk):
        return False
    chunks, within = divmod(first.within + first.count, first.per_chunk)
    return (first.chunk + chunks, within) == (second.chunk, second.within)


Piece = tuple[int, int, int, int]
"""Layer, chunk, first block within the chunk, number of blocks."""


class BlockMap:
    """A sorted list of runs, kept in arrays (18 bytes a run), looked up by bisect."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._starts = array("I")
        self._counts = array("I")
        self._chunks = array("I")
        self._withins = array("H")
        self._per_chunks = array("H")
        self._layers = array("H")
        for run in runs:
            self._starts.append(run.start)
            self._counts.append(run.count)
            self._chunks.append(run.chunk)
            self._withins.append(run.within)
            self._per_chunks.append(run.per_chunk)
            self._layers.append(run.layer)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Run]:
        return map(
            Run,
            self._starts,
            self._counts,
            self._chunks,
            self._withins,
            self._per_chunks,
            self._layers,
        )

    def pieces(self, block: int, count: int) -> Sequence[Piece]:
        """Cut `count` (at least 1) blocks from `block` on into what each chunk holds, in order.

        What no run holds is told as `ZERO_CHUNK`, like what a run says reads as zeros.
        """
        index = bisect_right(self._starts, block) - 1
        if index >= 0 and block + count <= self._starts[index] + self._counts[index]:
            # The usual case, on every read: all of it in one run.
            return self._run_pieces(index, block, block + count)
        return self._pieces(index, block, block + count)

    def _pieces(self, index: int, block: int, end: int) -> list[Piece]:
        starts, counts = self._starts, self._counts
        found: list[Piece] = []
        while block < end:
            if index >= 0 and block < starts[index] + counts[index]:
                stop = min(end, starts[index] + counts[index])
                found += self._run_pieces(index, block, stop)
                block = stop
            index += 1
            stop = min(end, starts[index]) if index < len(starts) else end
            if stop > block:
                found.append((0, ZERO_CHUNK, 0, stop - block))
                block = stop
        return found

    def _run_pieces(self, index: int, block: int, stop: int) -> Sequence[Piece]:
        chunk = self._chunks[index]
        if chunk == ZERO_CHUNK:
            return ((0, ZERO_CHUNK, 0, stop - block),)
        layer, per_chunk = self._layers[index], self._per_chunks[index]
        chunks, within = divmod(self._withins[index] + block - self._starts[index], per_chunk)
        chunk += chunks
        if stop - block <= per_chunk - within:
            return ((layer, chunk, within, stop - block),)
        found: list[Piece] = []
        while block < stop:
            count = min(per_chunk - within, stop - block)
            found.append((layer, chunk, within, count))
            block += count
            chunk += 1
            within = 0
        return found
