"""The device state of a state: QEMU's migration stream without the pages of its firmware
(docs/formats/state.md).

QEMU sends its firmware with the devices. That is nine tenths of the whole once it is packed, and a
machine that resumes the state has the same file: the manifest names it by its hash.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.machine_state import MAX_DEVICE_STATE
from p2pcloop.units import BLOCK_SIZE

_MAGIC: Final = b"P2PCDEV\0"
_HEAD = struct.Struct("<8s32sI")
_PIECE = struct.Struct("<III")
"""A piece that is left out: where it begins in the stream, where in the firmware, and its bytes."""

MAX_FIRMWARE_SIZE: Final = 16 << 20
"""Bytes of a firmware's file."""


def without_firmware(stream: bytes, firmware: bytes) -> bytes:
    """Leave the pages of a firmware's file out of a stream.

    Returns:
        The stream itself, if it has none of them.
    """
    pieces: list[tuple[int, int, int]] = []
    rest, end = bytearray(), 0
    for at in range(0, len(firmware) - BLOCK_SIZE + 1, BLOCK_SIZE):
        page = firmware[at : at + BLOCK_SIZE]
        # QEMU sends them in their order, and those of one byte alone in another form.
        if page.count(page[0]) < BLOCK_SIZE and (place := stream.find(page, end)) >= 0:
            pieces.append((place, at, BLOCK_SIZE))
            rest += stream[end:place]
            end = place + BLOCK_SIZE
    if not pieces:
        return stream
    head = _HEAD.pack(_MAGIC, hashlib.sha256(stream).digest(), len(pieces))
    return b"".join((head, *(_PIECE.pack(*piece) for piece in pieces), rest, stream[end:]))


def leaves_out(stored: bytes) -> bool:
    """Whether pages of firmware are left out of a device state."""
    return stored.startswith(_MAGIC)


def with_firmware(stored: bytes, firmware: bytes) -> bytes:
    """Return the stream, with the pages that were left out.

    Args:
        stored: a device state that `leaves_out` some.
        firmware: the content of the file.

    Raises:
        FormatError: the bytes are not as the format says.
        MismatchError: the firmware is another one.
    """
    if len(stored) < _HEAD.size:
        raise FormatError("the device state is cut off")
    _, digest, count = _HEAD.unpack_from(stored)
    start = _HEAD.size + count * _PIECE.size
    if not 0 < count <= MAX_FIRMWARE_SIZE // BLOCK_SIZE or start > len(stored):
        raise FormatError("the device state leaves out more than there is")
    pieces = list(_PIECE.iter_unpack(stored[_HEAD.size : start]))
    stream = _joined(stored[start:], pieces, firmware)
    if hashlib.sha256(stream).digest() != digest:
        raise _other_firmware()
    return stream


def _other_firmware() -> MismatchError:
    return MismatchError("the firmware of this system is not that of the state")


def _joined(rest: bytes, pieces: Sequence[tuple[int, int, int]], firmware: bytes) -> bytes:
    """Put pieces of firmware back."""
    if len(rest) + sum(length for _, _, length in pieces) > MAX_DEVICE_STATE:
        raise FormatError("the device state is too long")
    stream, at = bytearray(), 0
    for place, begin, length in pieces:
        missing = place - len(stream)
        if not 0 <= missing <= len(rest) - at or begin + length > MAX_FIRMWARE_SIZE:
            raise FormatError("a piece that the device state leaves out is nowhere")
        if begin + length > len(firmware):
            raise _other_firmware()
        stream += rest[at : at + missing]
        stream += firmware[begin : begin + length]
        at += missing
    return bytes(stream + rest[at:])
