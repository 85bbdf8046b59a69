"""Serves the memory file of a resumed guest: a part of an image's device, page by page.

A read of a page is a processor of the guest that stands still. What is here is answered inline; for
what is not, a task asks the supplier, as for the disk. The kernel reads a page at a time, and the
threads of a machine are few: so a task for each read that waits is little, and none needs a limit
of its own (memory_requests.py has one for all).

A signal to the machine ends no read: QEMU's threads signal each other all the time, and a read that
fails is the end of the guest. But a machine that was killed is gone only once its reads are
answered. So those of killed threads are given up.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from contextlib import suppress

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.protocol import fuse
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.block.backend import Backend, complete
from p2pcloopd.block.memory_file import MemoryFile, answer_for
from p2pcloopd.block.memory_requests import SLOT_SIZE, RequestTable
from p2pcloopd.block.spec import MemoryPart

_BATCH = 64
"""Requests that are taken before other tasks get their turn."""

_LOOK_SECONDS = 0.5
"""Between looks whether those who wait for a read still live."""

_SIGKILL = 1 << 8
_GONE = (errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED)

_log = logging.getLogger(__name__)


class _EndedError(Exception):
    """No program has the file open any more, or will."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A read that waits for bytes.

    Attributes:
        reader: the thread that waits, as of `fuse.reader_of`.
        scope: gives the read up.
    """

    reader: int
    scope: trio.CancelScope


class MemoryServer:
    """A worker that answers the reads of one memory file.

    Attributes:
        read: a byte for each block of the memory: 1 once it was read.
    """

    def __init__(self, backend: Backend, part: MemoryPart, file: MemoryFile) -> None:
        """Serve nothing yet; requests that an earlier worker has left are served first."""
        os.set_blocking(file.device, False)
        self.read = bytearray(part.length // BLOCK_SIZE)
        self._backend = backend
        self._part = part
        self._fd = file.device
        self._table = RequestTable(file.requests)
        self._rest = memoryview(bytearray(fuse.BUFFER_SIZE))
        self._output = memoryview(bytearray(fuse.HEADER_SIZE + fuse.MAX_READ))
        self._waiting: dict[int, _Waiting] = {}
        self._some_wait = trio.Event()
        self._answered = trio.Event()
        self._tasks: trio.Nursery

    async def run(self) -> None:
        """Serve until cancelled, or until the file is gone. What is not answered then is left to
        another worker."""
        try:
            with suppress(_EndedError):
                async with trio.open_nursery() as self._tasks:
                    self._tasks.start_soon(self._give_up_the_killed)
                    self._answer([(n, self._table.slot(n)) for n in self._table.unanswered()])
                    try:
                        await self._take_all()
                    except _EndedError:
                        self._tasks.cancel_scope.cancel()
        finally:
            self._table.close()

    async def _take_all(self) -> None:
        while True:
            if self._table.is_full:
                self._answered = trio.Event()
                await self._answered.wait()
            elif self._take_batch():
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._fd)

    def _take_batch(self) -> bool:
        """Answer the requests that are here; return whether there were any."""
        taken: list[tuple[int, memoryview]] = []
        while len(taken) < _BATCH and not self._table.is_full:
            number = self._table.next_free()
            slot = self._table.slot(number)
            length = self._receive(number, slot)
            if length is None:
                break
            self._table.take()
            data = slot[:length]
            if length > SLOT_SIZE:
                data = memoryview(bytes(slot) + bytes(self._rest[: length - SLOT_SIZE]))
            taken.append((number, data))
        self._answer(taken)
        return bool(taken)

    def _receive(self, number: int, slot: memoryview) -> int | None:
        """Read the next request into a slot; return its length, or None if there is none now."""
        while True:
            try:
                return os.readv(self._fd, [slot, self._rest])
            except BlockingIOError:
                return None
            except OSError as err:
                self._table.clear(number)
                if err.errno in _GONE:
                    raise _EndedError from err
                if err.errno != errno.ENOENT:  # else it was given up before it was read
                    raise

    def _answer(self, taken: Sequence[tuple[int, memoryview]]) -> None:
        """Answer requests, or have tasks do so. Several reads have their chunks decoded side by
        side."""
        reads: list[tuple[int, memoryview, fuse.Read]] = []
        for number, data in taken:
            request = fuse.parse(_whole(data))
            if isinstance(request, fuse.Read):
                reads.append((number, data, request))
            else:
                self._send(number, answer_for(request, self._part.length))
        if len(reads) > 1:
            start = self._part.offset
            self._backend.device.read_ahead([(start + r.offset, r.length) for _, _, r in reads])
        for number, data, read in reads:
            self._read(number, fuse.reader_of(data), read)

    def _read(self, number: int, reader: int, request: fuse.Read) -> None:
        first, last = request.offset // BLOCK_SIZE, (request.offset + request.length) // BLOCK_SIZE
        self.read[first:last] = b"\1" * (min(last, len(self.read)) - first)
        try:
            self._send(number, self._filled(request, self._output))
        except Missing as missing:
            waiting = self._waiting[number] = _Waiting(reader, trio.CancelScope())
            self._some_wait.set()
            lacking = missing.with_traceback(None)
            self._tasks.start_soon(self._read_later, number, request, lacking, waiting.scope)
        except P2pcloopError as err:
            self._send(number, _failed(request, err))

    async def _read_later(
        self, number: int, request: fuse.Read, missing: Missing, scope: trio.CancelScope
    ) -> None:
        replies: list[memoryview] = []

        def fill() -> None:
            replies.append(self._filled(request, self._output))

        answer: bytes | memoryview = fuse.failed(request.unique, errno.EINTR)
        with scope:
            try:
                await complete(self._backend, fill, missing)
                answer = replies[0]  # nothing is awaited between its making and its sending
            except P2pcloopError as err:
                answer = _failed(request, err)
        del self._waiting[number]
        if not self._waiting:
            self._some_wait = trio.Event()
        self._send(number, answer)
        self._answered.set()

    def _filled(self, request: fuse.Read, view: memoryview) -> memoryview:
        """Return the reply to a read, made in `view`; errors as of the device."""
        start = min(request.offset, self._part.length)
        length = min(request.length, fuse.MAX_READ, self._part.length - start)
        whole = view[: fuse.HEADER_SIZE + length]
        if length:
            self._backend.device.read_into(self._part.offset + start, (whole[fuse.HEADER_SIZE :],))
        fuse.put_header(whole, request.unique, length)
        return whole

    def _send(self, number: int, data: bytes | memoryview | None) -> None:
        """Send an answer, and forget its request. The kernel refuses one that was sent already by
        a worker that was killed then."""
        if data is not None:
            try:
                os.write(self._fd, data)
            except OSError as err:
                if err.errno != errno.ENOENT and err.errno not in _GONE:
                    _log.error("the kernel refused an answer of %d bytes: %s", len(data), err)
        self._table.release(number)

    async def _give_up_the_killed(self) -> None:
        while True:
            await self._some_wait.wait()
            await trio.sleep(_LOOK_SECONDS)
            for waiting in list(self._waiting.values()):
                if is_killed(waiting.reader):
                    waiting.scope.cancel()


def refuse_all(file: MemoryFile) -> None:
    """Refuse the requests that a worker has left, where it has no successor."""
    table = RequestTable(file.requests)
    for number in list(table.unanswered()):
        request = fuse.parse(_whole(table.slot(number)))
        if not isinstance(request, fuse.Forget | fuse.Interrupt):
            with suppress(OSError):  # it was answered, and its worker killed then
                os.write(file.device, fuse.failed(request.unique, errno.EIO))
        table.release(number)
    table.close()


def _whole(data: memoryview) -> memoryview:
    """A request as it came, without what a slot of the table has behind it."""
    return data[: fuse.length_of(data)]


def _failed(request: fuse.Read, err: P2pcloopError) -> bytes:
    _log.error(
        "the guest ends: its memory at %d cannot be read: %s%s",
        *(request.offset, err, f"; {err.hint}" if err.hint else ""),
    )
    return fuse.failed(request.unique, errno.EIO)


def is_killed(thread: int) -> bool:
    """Whether a thread of this system was killed, or is gone; False for 0, which is none."""
    if not thread:
        return False
    try:
        with open(f"/proc/{thread}/status", "rb") as status:
            lines = status.read().splitlines()
    except OSError:
        return True
    pending = (line.split()[1] for line in lines if line.startswith((b"SigPnd:", b"ShdPnd:")))
    return any(int(each, 16) & _SIGKILL for each in pending)
