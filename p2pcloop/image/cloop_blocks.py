"""Blocks of a cloop in an image, for another cloop: taken over as they are stored."""

from __future__ import annotations

from functools import partial

from p2pcloop.formats.chunk_table import Chunk
from p2pcloop.formats.cloop_compress import can_stay
from p2pcloop.formats.cloop_writer import CloopForm, StoredBlock
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.layer import Pack
from p2pcloop.units import BLOCK_SIZE


def find_stored(device: ImageDevice, offset: int, form: CloopForm) -> StoredBlock | None:
    """Find the block at an offset of a device among its chunks; with its device a `FindStored`."""
    if form.block_size % BLOCK_SIZE:
        return None
    found = device.whole_chunk(offset, form.block_size, form.codec)
    if found is None or not can_stay(form.codec, found[2], form.block_size):
        return None
    return partial(_verified, *found)


def _verified(pack: Pack, chunk: Chunk, stored: bytes) -> bytes | None:
    return None if pack.decode(chunk, stored) is None else stored
