"""The device calls for the requests of NBD clients, except READ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Final

from p2pcloop.image.api import BlockDevice
from p2pcloop.protocol import nbd_wire as wire
from p2pcloop.protocol.nbd import Request
from p2pcloop.protocol.nbd_options import ALLOCATION_ID
from p2pcloop.protocol.nbd_reply import Replies

MAX_EXTENTS: Final = 4096
"""Extents in one reply to BLOCK_STATUS; a client that wants more asks again."""

_ZEROS: Final = memoryview(bytes(1 << 20))

_CHANGES: Final = (wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES)


def call_for(device: BlockDevice, request: Request) -> Callable[[], None]:
    """Return the call of the device for a WRITE, TRIM, WRITE_ZEROES or CACHE."""
    command, flags, _, offset, length, payload = request
    if command == wire.CMD_WRITE:
        return partial(device.write, offset, (payload,))
    if command == wire.CMD_TRIM:
        return partial(device.discard, offset, length)
    if command == wire.CMD_CACHE:
        return partial(device.require, offset, length)
    if flags & wire.CMD_FLAG_NO_HOLE:
        zeros = [_ZEROS[: length - at] for at in range(0, length, len(_ZEROS))]
        return partial(device.write, offset, zeros)
    return partial(device.write_zeroes, offset, length, may_unmap=True)


def block_status(device: BlockDevice, replies: Replies, request: Request) -> bytes:
    """Return the reply to a BLOCK_STATUS: known zeros are a hole, all else is data."""
    limit = 1 if request.flags & wire.CMD_FLAG_REQ_ONE else MAX_EXTENTS
    extents = islice(device.extents(request.offset, request.length), limit)
    hole = wire.STATE_HOLE | wire.STATE_ZERO
    told = ((length, hole if zeros else 0) for length, zeros in extents)
    return replies.block_status(request.cookie, ALLOCATION_ID, told)


def must_be_durable(request: Request) -> bool:
    """Whether the reply waits for the disk; FUA may be set on all commands, with no meaning."""
    fua = request.flags & wire.CMD_FLAG_FUA and request.command in _CHANGES
    return bool(fua) or request.command == wire.CMD_FLUSH


def payload_of(request: Request) -> int:
    """Return the bytes of memory that a waiting request keeps."""
    return request.length if request.command == wire.CMD_READ else len(request.payload)
