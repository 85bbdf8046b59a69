"""Pushes pages of a guest's memory into the kernel's cache, before the guest touches them.

Such a page costs the guest no read, and its neighbours come with it. The kernel lets a push wait
for a page that a READ is under way for, and nothing ends that wait but the answer. A worker that
waited there itself could not be killed, and had no successor to answer. So a process that does
nothing else pushes (`run_pusher`). The buffer of its socket bounds what is on the way to it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
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
"""Blocks that are pushed at once: a socket's buffer takes a few of such messages."""


def push_sockets() -> tuple[socket.socket, socket.socket]:
    """Return both ends of the way to a pusher; the first is for those who send."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def run_pusher(receiver: socket.socket, device: int) -> None:
    """Push what comes, until nobody can send any more."""
    message = memoryview(bytearray(fuse.STORE_HEADER_SIZE + _MAX_BLOCKS * BLOCK_SIZE))
    while length := receiver.recv_into(message):
        with suppress(OSError):  # nobody has the file open any more, or the system lacks memory
            os.write(device, message[:length])


class MemoryPush:
    """The worker's side: sends the pages of a profile, in its order, as they arrive."""

    def __init__(
        self, image: MergedImage, part: MemoryPart, sender: trio.socket.SocketType, read: bytearray
    ) -> None:
        """Push nothing yet.

        Args:
            image: which has the part.
            sender: an end of `push_sockets`.
            read: a byte for each block of the memory, not 0 once the guest has read it: that is
                not pushed any more.
        """
        self._device = ImageDevice(image)  # what is read of this one is no touch of the guest's
        self._part = part
        self._sender = sender
        self._read = read

    async def run(self, touches: Sequence[Touch], arrivals: Arrivals) -> None:
        """Return when all is sent that is here or arrives."""
        message = memoryview(bytearray(fuse.STORE_HEADER_SIZE + _MAX_BLOCKS * BLOCK_SIZE))
        first = self._part.offset // BLOCK_SIZE
        for touch in touches:
            start, end = touch.start - first, min(touch.end - first, len(self._read))
            for at in range(max(0, start), end, _MAX_BLOCKS):
                for block, count in self._unread(at, min(at + _MAX_BLOCKS, end)):
                    data = message[: fuse.STORE_HEADER_SIZE + count * BLOCK_SIZE]
                    if await self._fill(block, data, arrivals):
                        try:
                            await self._sender.send(data)
                        except OSError:  # the pusher was killed: reads do all
                            return

    async def _fill(self, block: int, message: memoryview, arrivals: Arrivals) -> bool:
        """Make a message with content from a block on; False if that does not come."""
        offset, content = block * BLOCK_SIZE, message[fuse.STORE_HEADER_SIZE :]
        fuse.put_store_header(message, fuse.ROOT, offset, len(content))
        while True:
            try:
                self._device.read_into(self._part.offset + offset, (content,))
            except Missing:
                if arrivals.ended:
                    return False
            except P2pcloopError:  # a read of the guest tells
                return False
            else:
                return True
            await arrivals.news()

    def _unread(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Cut blocks of the memory into those runs that were not read: first block, blocks."""
        while (start := self._read.find(0, start, end)) >= 0:
            stop = self._read.find(1, start, end)
            stop = end if stop < 0 else stop
            yield start, stop - start
            start = stop
