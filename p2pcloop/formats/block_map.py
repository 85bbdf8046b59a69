"""Maps: the chunk that holds each block (docs/formats/index.md).

A map is a sorted list of runs. In a run, `count` blocks of the device from `start` on lie one after
the other in consecutive chunks of `per_chunk` blocks each, beginning with block `within` of chunk
`chunk`. A whole cloop is one run (but for its holes); a scattered delta is one run for
each stretch of changed blocks. Blocks that no run holds are the lower layer's, or zeros in the
base. A run of chunk `ZERO_CHUNK` reads as zeros.

Merging joins the maps of all layers once, when an image is opened; a look-up is one bisect.

Maps are read, merged and kept in arrays, column by column: a stack of layers has some 100,000 runs,
and an object for each would cost a second and 20 MB. `Run` is for code that makes layers.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, compress, count, islice, pairwise
from operator import add, le, ne

from p2pcloop.errors import FormatError
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE, MAX_CHUNK_SIZE
from p2pcloop.words import tr

ZERO_CHUNK = 0xFFFFFFFF
MAX_COUNT = 0xFFFFFFFF
"""Blocks of one run at most, by the size of the field: one less than the largest device has."""

MAX_BLOCKS_PER_CHUNK = MAX_CHUNK_SIZE // BLOCK_SIZE
RUN = struct.Struct("<IIIHH")
"""start, count, chunk, within, per_chunk."""


@dataclass(frozen=True, slots=True)
class Run:
    """`count` blocks from `start` on, in chunks of `per_chunk` blocks from block `within` on.

    `layer` is 0 in the map of one layer; in a merged map it is the layer of the chunks.
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
        """The part of the run from block `start` up to `end`, which must lie in it."""
        if self.chunk == ZERO_CHUNK:
            return replace(self, start=start, count=end - start)
        chunks, within = divmod(self.within + start - self.start, self.per_chunk)
        return replace(
            self, start=start, count=end - start, chunk=self.chunk + chunks, within=within
        )


class LayerMap:
    """The runs of one layer in columns, 24 bytes a run.

    Attributes:
        starts, counts, chunks: as in `Run`.
        ends: the block after each run.
        shapes: `within` in the lower 16 bits, `per_chunk` in the upper ones.
    """

    __slots__ = ("chunks", "counts", "ends", "shapes", "starts")

    def __init__(self, words: array[int]) -> None:
        """Take four words for each run, as in a stored map; they are not checked."""
        self.starts = words[0::4]
        self.counts = words[1::4]
        self.chunks = words[2::4]
        self.shapes = words[3::4]
        self.ends = array("Q", map(add, self.starts, self.counts))

    @classmethod
    def from_runs(cls, runs: Iterable[Run]) -> LayerMap:
        """Make columns of runs, which must be in order without overlaps."""
        return cls(_words(pack_runs(runs)))

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Run]:
        for start, blocks, chunk, shape in zip(
            self.starts, self.counts, self.chunks, self.shapes, strict=True
        ):
            yield Run(start, blocks, chunk, shape & 0xFFFF, shape >> 16)


def pack_runs(runs: Iterable[Run]) -> bytes:
    """Write the runs of one layer, 16 bytes each."""
    return b"".join(RUN.pack(r.start, r.count, r.chunk, r.within, r.per_chunk) for r in runs)


def unpack_runs(data: bytes, *, blocks: int, chunks: int) -> LayerMap:
    """Read the runs of one layer and check them whole.

    Args:
        data: 16 bytes a run.
        blocks: blocks of the device.
        chunks: chunks of the layer.

    Raises:
        FormatError: runs that overlap, are not in order, or point outside device or chunk table.
    """
    if len(data) % RUN.size:
        raise FormatError(
            tr("a map of {data_count} bytes is not a whole number of runs", data_count=len(data))
        )
    layer_map = LayerMap(_words(data))
    starts, counts, ends = layer_map.starts, layer_map.counts, layer_map.ends
    in_order = all(map(le, ends, islice(starts, 1, None)))
    if 0 in counts or not in_order or (ends and ends[-1] > blocks):
        raise FormatError("a map has runs that overlap, are empty or point outside the device")
    for chunk, length, shape in zip(layer_map.chunks, counts, layer_map.shapes, strict=True):
        if chunk == ZERO_CHUNK:
            if shape:
                raise FormatError("a run of zeros in a map names blocks within a chunk")
            continue
        within, per_chunk = shape & 0xFFFF, shape >> 16
        if not within < per_chunk <= MAX_BLOCKS_PER_CHUNK:
            raise FormatError("a run of a map names a block outside its chunk")
        if chunk + (within + length - 1) // per_chunk >= chunks:
            raise FormatError("a run of a map points past the last chunk")
    return layer_map


def _words(data: bytes) -> array[int]:
    words = array("I")
    words.frombytes(data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def merge(layers: Sequence[LayerMap]) -> BlockMap:
    """Join the maps of layers, base first; upper layers hide lower ones.

    The borders of all runs cut the device into stretches. Layer by layer, each run is written over
    the stretches that it covers; at the end each stretch has the run that shows. For large maps
    this is done for one part of the device after the other, to save memory.
    """
    columns = _Columns()
    rows_of = [columns.add(number, layer) for number, layer in enumerate(layers)]
    starts, rows = array("Q"), array("I")
    for low, high in _parts_of_device(layers):
        if starts and starts[-1] == low:
            del starts[-1:], rows[-1:]  # a gap behind the part before
        borders, seen = _merge_part(layers, rows_of, low, high)
        # Neighbouring stretches of one run are joined.
        seams = list(map(ne, seen, chain(rows[-1:] or (None,), seen)))
        starts.extend(compress(borders, seams))
        rows.extend(compress(seen, seams))
    return BlockMap(starts or array("Q", (0,)), rows or array("I", (0,)), columns)


def _parts_of_device(layers: Sequence[LayerMap]) -> Iterator[tuple[int, int]]:
    """Cut the device into parts (first block, end) of about `_MERGED_AT_ONCE` runs at most.

    For each layer there may be one more run, which begins before the part.
    """
    step = max(1, _MERGED_AT_ONCE // max(1, len(layers)))
    borders = {start for layer in layers for start in layer.starts[step::step]}
    borders |= {layer.ends[-1] for layer in layers if len(layer)}
    return pairwise([0, *sorted(borders - {0})])


def _merge_part(
    layers: Sequence[LayerMap], rows_of: Sequence[int], low: int, high: int
) -> tuple[list[int], array[int]]:
    """Merge the runs in one part of the device: return the starts of stretches, and their rows.

    The last stretch, of row 0, begins at the end of the part, unless the part ends with a gap.

    Args:
        layers: all of them, base first.
        rows_of: the row of each layer's first run.
        low, high: the first block, and the block after the last one.
    """
    borders = [low]
    parts = []
    for layer, row in zip(layers, rows_of, strict=True):
        first, last = bisect_right(layer.ends, low), bisect_left(layer.starts, high)
        if first < last:
            starts, ends = layer.starts[first:last], layer.ends[first:last]
            starts[0], ends[-1] = max(low, starts[0]), min(high, ends[-1])
            parts.append((starts, ends, row + first))
            borders += starts
            borders += ends
    borders.sort()
    borders = [low, *compress(islice(borders, 1, None), map(ne, islice(borders, 1, None), borders))]
    # With many borders, every block is a stretch: that needs no table of places.
    place: Sequence[int] | dict[int, int] = range(high + 1)
    if low or high > MAX_PAINTED * len(borders):
        place = dict(zip(borders, count()))
    owners = array("I", bytes(4 * len(place)))
    owner = array("I", (0,))
    for starts, ends, row in parts:
        owner[0] = row
        firsts = map(place.__getitem__, starts)
        lasts = map(place.__getitem__, ends)
        for at, stop in zip(firsts, lasts, strict=True):
            owners[at:stop] = owner * (stop - at)
            owner[0] += 1
    return borders, array("I", map(owners.__getitem__, map(place.__getitem__, borders)))


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


MAX_PAINTED = 16
"""Blocks for each border, on a device that is merged block by block."""

_MERGED_AT_ONCE = 1 << 16
"""Runs of all layers that are merged together: that takes 20 MB for a moment."""

Piece = tuple[int, int, int, int]
"""Layer, chunk, first block within the chunk, number of blocks."""


class _Columns:
    """The runs of all layers, one row each. Row 0 stands for gaps, which read as zeros."""

    def __init__(self) -> None:
        self.starts = array("I", (0,))
        self.chunks = array("I", (ZERO_CHUNK,))
        self.shapes = array("I", (0,))
        self.layers = array("H", (0,))

    def add(self, number: int, layer: LayerMap) -> int:
        """Append the runs of a layer; return the row of the first."""
        row = len(self.starts)
        self.starts += layer.starts
        self.chunks += layer.chunks
        self.shapes += layer.shapes
        self.layers += array("H", (number,)) * len(layer)
        return row


_BEHIND_ALL = 1 << 33
"""A border behind the last block of any device."""


class BlockMap:
    """The merged map of an image: sorted stretches, each a part of a run of some layer.

    Takes 14 bytes for each run of the layers and 12 for each stretch.
    """

    def __init__(self, borders: array[int], rows: array[int], columns: _Columns) -> None:
        """`borders` are the starts of stretches, the first one 0; `rows` are their runs."""
        self._borders = borders
        self._borders.append(_BEHIND_ALL)
        self._rows = rows
        self._starts = columns.starts
        self._chunks = columns.chunks
        self._shapes = columns.shapes
        self._layers = columns.layers

    def __iter__(self) -> Iterator[Run]:
        """The map as runs with the numbers of their layers; continuous runs are joined."""
        return _join(self._parts())

    def _parts(self) -> Iterator[Run]:
        for index, row in enumerate(self._rows):
            if row:
                shape = self._shapes[row]
                start, end = self._borders[index], self._borders[index + 1]
                run = Run(
                    self._starts[row],
                    end - self._starts[row],
                    self._chunks[row],
                    shape & 0xFFFF,
                    shape >> 16,
                    self._layers[row],
                )
                yield run.part(start, end)

    def pieces(self, block: int, count: int) -> Sequence[Piece]:
        """Cut `count` (at least 1) blocks from `block` on at the borders of chunks, in order.

        Blocks that no run maps have `ZERO_CHUNK`, like those of a run of zeros.
        """
        borders = self._borders
        index = bisect_right(borders, block) - 1
        end = block + count
        if end <= borders[index + 1]:
            # The usual case of a read: all blocks are in one stretch.
            return self._run_pieces(self._rows[index], block, end)
        found: list[Piece] = []
        while block < end:
            stop = min(end, borders[index + 1])
            found += self._run_pieces(self._rows[index], block, stop)
            block = stop
            index += 1
        return found

    def extents(self, block: int, count: int) -> Iterator[tuple[int, bool]]:
        """Cut `count` blocks from `block` on into stretches: number of blocks, whether all zeros.

        Two neighbours may be of one kind.
        """
        borders = self._borders
        index = bisect_right(borders, block) - 1
        end = block + count
        while block < end:
            stop = min(end, borders[index + 1])
            yield stop - block, self._chunks[self._rows[index]] == ZERO_CHUNK
            block = stop
            index += 1

    def _run_pieces(self, row: int, block: int, stop: int) -> Sequence[Piece]:
        chunk = self._chunks[row]
        if chunk == ZERO_CHUNK:
            return ((0, ZERO_CHUNK, 0, stop - block),)
        layer, shape = self._layers[row], self._shapes[row]
        per_chunk = shape >> 16
        chunks, within = divmod((shape & 0xFFFF) + block - self._starts[row], per_chunk)
        chunk += chunks
        if stop - block <= per_chunk - within:
            return ((layer, chunk, within, stop - block),)
        found: list[Piece] = []
        while block < stop:
            blocks = min(per_chunk - within, stop - block)
            found.append((layer, chunk, within, blocks))
            block += blocks
            chunk += 1
            within = 0
        return found
