"""The chunks that hold a profile's blocks, and the bytes of them that are missing here."""

from __future__ import annotations

from collections.abc import Iterable

from p2pcloop.formats.block_map import ZERO_CHUNK
from p2pcloop.formats.profile import Touch
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.units import BLOCK_SIZE

ChunkKey = tuple[int, int]
"""The number of a layer, and the number of a chunk in its table."""


def chunks_in_order(device: ImageDevice, touches: Iterable[Touch]) -> list[ChunkKey]:
    """The chunks that hold touched blocks, in order of first touch; none twice.

    Blocks in the overlay, and blocks behind the image's end, are left out.
    """
    found: dict[ChunkKey, None] = {}
    blocks = device.image.size // BLOCK_SIZE
    for touch in touches:
        if touch.start >= blocks:
            continue
        for first, count in device.below(touch.start, min(touch.count, blocks - touch.start)):
            for layer, chunk, _, _ in device.image.map.pieces(first, count):
                if chunk != ZERO_CHUNK:
                    found[layer, chunk] = None
    return list(found)


def missing_chunks(image: MergedImage, chunks: Iterable[ChunkKey]) -> dict[ByteRange, ChunkKey]:
    """The ranges to fetch for chunks that are nowhere on this machine, in order; of a chain also
    those of the chunks before them.

    Raises:
        Missing: pages of chunk tables are not here; it names all of them.
    """
    found: dict[ByteRange, ChunkKey] = {}
    done: dict[int, set[int]] = {}
    pages: list[ByteRange] = []
    for layer, chunk in chunks:
        try:
            lacking = image.layers[layer].lacking(chunk, done.setdefault(layer, set()))
        except Missing as missing:
            pages += missing.ranges
            continue
        found |= {wanted: (layer, number) for number, wanted in lacking.items()}
    if pages:
        raise Missing(pages)
    return found


def needed_bytes(image: MergedImage, chunks: Iterable[ChunkKey]) -> int:
    """The stored bytes of chunks and of those that they need, here or not; each counted once.

    Raises:
        Missing: a page of a chunk table is not here.
    """
    found: dict[int, set[int]] = {}
    for layer, number in chunks:
        before = found.setdefault(layer, set())
        if number not in before:
            before.update(image.layers[layer].needs(number, before))
    return sum(
        image.layers[layer].chunk(number).length
        for layer, numbers in found.items()
        for number in numbers
    )


def following_chunk(image: MergedImage, layer: int, number: int) -> ByteRange | None:
    """The range to fetch next if chunks are read one after the other; None if they are not.

    A chunk counts as part of such a run if the chunk before it was read. In a boot of Debian from a
    cloop this foresees 45 % of the misses, for 12 % more bytes. With two chunks before it, it would
    foresee 31 % for 6 %.
    """
    if not image.touched(layer, number - 1):
        return None
    if number + 1 >= image.layers[layer].header.chunk_count or image.touched(layer, number + 1):
        return None
    try:
        return image.layers[layer].missing_chunk(number + 1)
    except Missing:
        return None  # on a page that no reader needs yet
