"""The reply to one READ of an NBD client: its layout, filled with the bytes of the device."""

from __future__ import annotations

from typing import Final

from p2pcloop.image.api import BlockDevice, ByteRange, Missing
from p2pcloop.protocol import nbd_wire as wire
from p2pcloop.protocol.nbd import Request
from p2pcloop.protocol.nbd_reply import Replies

SPARSE_READ: Final = 32 << 10
"""A shorter read is answered with its bytes even if they are zeros: a check would cost more."""


class ReadReply:
    """A reply; stretches of zeros are sent as holes if the client agreed to that.

    Attributes:
        size: bytes of the whole reply.
    """

    def __init__(self, device: BlockDevice, replies: Replies, request: Request) -> None:
        self._device = device
        self._replies = replies
        self._request = request
        self._parts = self._lay_out()
        header = replies.data_header_size
        self.size = sum(wire.HOLE_CHUNK.size if hole else header + n for n, hole in self._parts)

    def fill(self, reply: memoryview) -> None:
        """Fill `reply`, which is `size` bytes long.

        Raises:
            Missing: all ranges that are not here; call again when they are.
            P2pcloopError: as of the device; nothing of the reply may be sent.
        """
        missing: list[ByteRange] = []
        cookie, offset = self._request.cookie, self._request.offset
        end = offset + self._request.length
        for length, hole in self._parts:
            last = offset + length == end
            if hole:
                header = self._replies.hole(cookie, offset, length, last=last)
            else:
                header = self._replies.data_header(cookie, offset, length, last=last)
            reply[: len(header)] = header
            reply = reply[len(header) :]
            if not hole:
                try:
                    self._device.read_into(offset, (reply[:length],))
                except Missing as absent:
                    missing += absent.ranges
                reply = reply[length:]
            offset += length
        if missing:
            raise Missing(missing)

    def _lay_out(self) -> list[tuple[int, bool]]:
        """Return the reply's parts: their bytes of the device, and whether they are a hole."""
        _, flags, _, offset, length, _ = self._request
        whole = [(length, False)]
        if not self._replies.structured or length < SPARSE_READ:
            return whole
        parts = list(self._device.extents(offset, length))
        if flags & wire.CMD_FLAG_DF and len(parts) > 1:
            return whole
        told = sum(bytes_ for bytes_, _ in parts)
        return parts if told == length else [*parts, (length - told, False)]
