"""Pushes pages of a guest's memory into the kernel's cache, before the guest touches them.

Such a page costs the guest no read, and its neighbours come with it. The kernel lets a push wait
for a page that a READ is under way for, and nothing ends that wait but the answer. A worker that
waited there itself could not be killed, and had no successor to answer. So a process that does
nothing else pushes (`run_pusher`). The buffer of its socket bounds what is on the way to it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.profile import Touch
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.protocol import fuse
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.block.arrivals import Arrivals
from p2pcloopd.block.spec import MemoryPart

_MAX_BLOCKS = 16
"""Blocks of one push."""

_BATCH_SIZE = _MAX_BLOCKS * (fuse.STORE_HEADER_SIZE + BLOCK_SIZE)
"""Bytes of the pushes that are sent together: a socket's buffer takes a few such messages."""


def push_sockets() -> tuple[socket.socket, socket.socket]:
    """Return both ends of the way to a pusher; the first is for those who send."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def run_pusher(receiver: socket.socket, device: int) -> None:
    """Push what comes, until no worker can send any more."""
    batch = memoryview(bytearray(_BATCH_SIZE))
    while end := receiver.recv_into(batch):
        start = 0
        while start < end:
            push = batch[start : start + fuse.length_of(batch[start:])]
            with suppress(OSError):  # no program has the file open, or the system lacks memory
                os.write(device, push)
            start += len(push)


class MemoryPush:
    """The worker's side: sends the pages of a profile, in its order, as they arrive."""

    def __init__(
        self, image: MergedImage, part: MemoryPart, sender: trio.socket.SocketType, read: bytearray
    ) -> None:
        """Push nothing yet.

        Args:
            image: which has the part.
            part: of it.
            sender: an end of `push_sockets`.
            read: a byte for each block of the memory, not 0 once the guest has read it: that is
                not pushed any more.
        """
        self._device = ImageDevice(image)  # what is read of this one is no touch of the guest's
        self._part = part
        self._sender = sender
        self._read = read
        self._batch = memoryview(bytearray(_BATCH_SIZE))
        self._end = 0
        self._is_over: Callable[[], bool]

    async def run(
        self, touches: Sequence[Touch], arrivals: Arrivals, *, later: bool = False
    ) -> None:
        """Return when all is sent that is here or arrives, or the pusher was killed: reads do all
        then.

        Args:
            later: they are not what the guest waits for, and may come after that.
        """
        self._is_over = lambda: arrivals.ended if later else arrivals.first_ended
        with suppress(OSError):
            for block, count in self._unread(touches):
                await self._add(block, count, arrivals)
                await trio.lowlevel.checkpoint()  # a read of the guest comes first
            await self._send()

    async def _add(self, block: int, count: int, arrivals: Arrivals) -> None:
        """Add blocks of the memory to the batch once they are here; none if they do not come."""
        offset, size = block * BLOCK_SIZE, fuse.STORE_HEADER_SIZE + count * BLOCK_SIZE
        if self._end + size > _BATCH_SIZE:
            await self._send()
        while True:
            push = self._batch[self._end : self._end + size]
            content = push[fuse.STORE_HEADER_SIZE :]
            try:
                self._device.read_into(self._part.offset + offset, (content,))
            except Missing:
                if self._is_over():
                    return
            except P2pcloopError:  # a read of the guest tells
                return
            else:
                fuse.put_store_header(push, fuse.ROOT, offset, len(content))
                self._end += size
                return
            if self._end:
                await self._send()  # and look again: news may have come meanwhile
            else:
                await arrivals.news()

    async def _send(self) -> None:
        if self._end:
            await self._sender.send(self._batch[: self._end])
            self._end = 0

    def _unread(self, touches: Sequence[Touch]) -> Iterator[tuple[int, int]]:
        """The blocks of the memory that are touched and were not read, in runs: first, count."""
        first = self._part.offset // BLOCK_SIZE
        for touch in touches:
            at, end = max(0, touch.start - first), min(touch.end - first, len(self._read))
            while 0 <= (at := self._read.find(0, at, end)) < end:
                stop = self._read.find(1, at, end)
                stop = min(end if stop < 0 else stop, at + _MAX_BLOCKS)
                yield at, stop - at
                at = stop
