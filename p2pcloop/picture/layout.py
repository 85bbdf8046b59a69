"""Which stored bytes each cell of a chunk map shows. It depends on the image alone.

The device is cut into cells of equal size, at most `MAX_CELLS`, and each cell at the borders of
chunks. A cell with more than `MAX_PIECES` of these, and each cell of a large device, is cut into
`WINDOWS` equal windows instead, and the chunk at the start of a window stands for all of it. So a
map of 1 TiB takes as long as one of 4 GiB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from p2pcloop.formats.block_map import ZERO_CHUNK
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.merged import MergedImage
from p2pcloop.units import BLOCK_SIZE

MAX_CELLS = 2048
"""Cells of a map at most."""

WINDOWS = 16
"""Chunks that are looked up for a cell at most, in a device whose cells are larger than that."""

MAX_PIECES = 64
"""Pieces between borders of chunks that a cell is cut into at most.

A cell of 1 MiB has 4 to 16 of them as images are made. A stranger's image may have a chunk for each
block: at 230 bytes a part its layout would have 120 MB, and four are kept. So it has 30 MB.
"""

_EXACT = 256
"""Blocks of the largest cell that is cut at each border of a chunk."""


@dataclass(frozen=True, slots=True)
class Part:
    """A run of blocks in one chunk.

    Attributes:
        cell: the number of the cell that it is in.
        start, count: its blocks.
        empty: nothing is stored for it, it reads as zeros.
        place: where the chunk's bytes lie; None for those of a local file, and where the page of
            the chunk table that tells it is not here.
        known: whether the place is known.
    """

    cell: int
    start: int
    count: int
    empty: bool = False
    place: ByteRange | None = None
    known: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """The cells of a device.

    Attributes:
        blocks: of the device.
        per_cell: blocks of each cell; the last one may have fewer.
        parts: in order; together they are all blocks.
    """

    blocks: int
    per_cell: int
    parts: Sequence[Part]

    @property
    def cells(self) -> int:
        """How many there are."""
        return -(-self.blocks // self.per_cell)


def lay_out(image: MergedImage, max_cells: int = MAX_CELLS) -> Layout:
    """Cut the device of an image into cells and these into parts.

    Args:
        max_cells: at least 1.

    Raises:
        FormatError: a chunk table is what was signed and yet cannot be right.
    """
    blocks = image.size // BLOCK_SIZE
    per_cell = max(1, -(-blocks // max_cells))
    places: dict[tuple[int, int], tuple[ByteRange | None, bool]] = {}

    def part(cell: int, start: int, count: int, layer: int, chunk: int) -> Part:
        if chunk == ZERO_CHUNK:
            return Part(cell, start, count, empty=True)
        key = layer, chunk
        if key not in places:
            places[key] = _place(image, layer, chunk)
        place, known = places[key]
        return Part(cell, start, count, place=place, known=known)

    parts = [part(*each) for each in _cut(image, blocks, per_cell)]
    return Layout(blocks, per_cell, parts)


def _cut(
    image: MergedImage, blocks: int, per_cell: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield cell, first block, blocks, layer and chunk of each part."""
    step = -(-per_cell // WINDOWS)
    for cell, first in enumerate(range(0, blocks, per_cell)):
        end = min(blocks, first + per_cell)
        pieces = image.map.pieces(first, end - first) if per_cell <= _EXACT else ()
        if 0 < len(pieces) <= MAX_PIECES:
            start = first
            for layer, chunk, _, size in pieces:
                yield cell, start, size, layer, chunk
                start += size
            continue
        for start in range(first, end, step):
            layer, chunk, _, _ = image.map.pieces(start, 1)[0]
            yield cell, start, min(step, end - start), layer, chunk


def _place(image: MergedImage, layer: int, chunk: int) -> tuple[ByteRange | None, bool]:
    try:
        return image.layers[layer].place(chunk), True
    except Missing:
        return None, False
