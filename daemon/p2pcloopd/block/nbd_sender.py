"""Sends the replies of one NBD connection: each whole, and many with one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from p2pcloopd.block.nbd_transport import Transport

BATCH_SIZE: Final = 256 << 10
"""Replies gather in a buffer of this size until it is full or the batch is ended."""

MAX_KEPT_BATCH: Final = 2 << 20
"""A larger buffer, made for a large read, is dropped once it is sent."""


class ReplySender:
    """The sending half of a connection.

    One task gathers replies (`reserve`, `commit`, `add`, `send_batch`); any may `send` its own.
    When the client no longer receives, `lost` is called once and everything sent is dropped.

    Attributes:
        transport: how it is sent; replaced when TLS is started.
    """

    def __init__(self, transport: Transport, lost: Callable[[], None]) -> None:
        self.transport = transport
        self._lost = lost
        self._gone = False
        self._lock = trio.Lock()
        self._batch = memoryview(bytearray(BATCH_SIZE))
        self._end = 0

    async def reserve(self, size: int) -> memoryview:
        """Return room for a reply of `size` bytes behind those gathered, valid until the next
        await."""
        if self._end + size > len(self._batch):
            await self.send_batch()
            if size > len(self._batch):
                self._batch = memoryview(bytearray(size))
        return self._batch[self._end : self._end + size]

    def commit(self, size: int) -> None:
        """Add the first `size` bytes of what was reserved last to the batch."""
        self._end += size

    async def add(self, data: bytes) -> None:
        """Add a whole reply to the batch."""
        (await self.reserve(len(data)))[:] = data
        self.commit(len(data))

    async def send_batch(self) -> None:
        """Send what was gathered; a checkpoint only where the socket is full."""
        if self._end:
            await self.send(self._batch[: self._end])
            self._end = 0
        if len(self._batch) > MAX_KEPT_BATCH:
            self._batch = memoryview(bytearray(BATCH_SIZE))

    async def send(self, data: bytes | memoryview) -> None:
        """Send whole replies at once, past the batch."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if not self._gone:
                await self.transport.send_all(memoryview(data))
        except OSError:
            self._gone = True
            self._lost()
        finally:
            self._lock.release()

    def stop(self) -> None:
        """Drop all that is still to be sent: the client does not receive any more."""
        self._gone = True
