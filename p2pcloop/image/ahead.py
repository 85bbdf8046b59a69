"""What a profile's blocks are in an image, and which bytes of them are missing here."""

from __future__ import annotations

from collections.abc import Iterable

from p2pcloop.formats.block_map import ZERO_CHUNK
from p2pcloop.formats.profile import Touch
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.units import BLOCK_SIZE

ChunkKey = tuple[int, int]
"""The number of a layer, and that of a chunk in its table."""


def chunks_in_order(device: ImageDevice, touches: Iterable[Touch]) -> list[ChunkKey]:
    """The chunks that hold touched blocks, in order of first touch; none twice.

    Blocks that the overlay holds are read from there; those behind the device's end are left out.
    """
    found: dict[ChunkKey, None] = {}
    blocks = device.size // BLOCK_SIZE
    for touch in touches:
        if touch.start >= blocks:
            continue
        for first, count in device.below(touch.start, min(touch.count, blocks - touch.start)):
            for layer, chunk, _, _ in device.image.map.pieces(first, count):
                if chunk != ZERO_CHUNK:
                    found[layer, chunk] = None
    return list(found)


def missing_chunks(image: MergedImage, chunks: Iterable[ChunkKey]) -> dict[ByteRange, ChunkKey]:
    """The ranges that chunks are to be fetched by, in order, for those that are nowhere here.

    Raises:
        Missing: pages of chunk tables are not here; all of them.
    """
    found: dict[ByteRange, ChunkKey] = {}
    pages: list[ByteRange] = []
    for layer, chunk in chunks:
        try:
            wanted = image.layers[layer].missing_chunk(chunk)
        except Missing as missing:
            pages += missing.ranges
            continue
        if wanted is not None:
            found[wanted] = layer, chunk
    if pages:
        raise Missing(pages)
    return found


def following_chunk(image: MergedImage, layer: int, number: int) -> ByteRange | None:
    """What to fetch next where chunks are read one after the other; None where they are not.

    A chunk whose neighbour before it was read is taken for part of such a run. In the boot of a
    Debian from a cloop 45 % of the misses are foreseen so, for 12 % more bytes; two neighbours
    would foresee 31 % for 6 %.
    """
    if not image.touched(layer, number - 1):
        return None
    if number + 1 >= image.layers[layer].header.chunk_count or image.touched(layer, number + 1):
        return None
    try:
        return image.layers[layer].missing_chunk(number + 1)
    except Missing:
        return None  # of a page that no read needs yet
