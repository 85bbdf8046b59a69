"""Serves a tree at /dev/fuse: requests of the kernel in, replies out.

This is the thin trio side of `p2pcloop.protocol.fuse`. One task takes the requests. Reads whose
bytes are here are answered inline; several that came together have their chunks decoded side by
side. All other requests get a task of their own, since they may have to wait. A task ends early
when a signal reaches the process that waits for it: else a read that waits for peers could not be
interrupted.

Overload: the kernel has one request of each thread under way, and a bounded number of readahead
for the whole mount (`protocol/fuse.py`). So the number of tasks is bounded by these, and by the
threads that use the tree. A read that waits holds no buffer.

An error of any kind is answered, and confined to its request: a bug that shows in one file must not
end the mount, whose other readers would get I/O errors. The log has its traceback.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import trio

from p2pcloop.errors import (
    NotHereError,
    P2pcloopError,
    StorageError,
    UnreachableError,
    UsageError,
)
from p2pcloop.image.api import Missing
from p2pcloop.protocol import fuse
from p2pcloop.text import printable
from p2pcloopd.block.backend import complete
from p2pcloopd.mount.nodes import FOREVER, Directory, File, Link, Node, Opened
from p2pcloopd.tasks import Pulse

NOT_FOUND_SECONDS = 10
"""The kernel does not ask again for a name that was not found so long."""

_BATCH = 64
"""Requests that are taken before other tasks get their turn."""

INTERRUPT_SECONDS = 0.5
"""A request goes on so long after a signal reached its process.

The kernel does not say which signal it was. A handler of the program takes most of them, and few
programs expect that an open or a read of a file fails then: what is here is answered all the same.
"""

_GONE = (errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED)

_CODES = {
    NotHereError: errno.ENOENT,
    UsageError: errno.EACCES,
    UnreachableError: errno.ETIMEDOUT,
}
"""What a program is told of an error of ours; EIO of any other."""

_log = logging.getLogger(__name__)


class _UnmountedError(Exception):
    """The file system is unmounted, and nothing of it is open any more."""


def _nothing() -> None:
    """Undo nothing."""


class _Reply(NamedTuple):
    """A reply, and what takes it back if the kernel no longer wants it."""

    data: bytes | memoryview
    undo: Callable[[], None] = _nothing


@dataclass(slots=True)
class _Listed:
    """An opened directory."""

    entries: list[fuse.DirectoryEntry]


@dataclass(slots=True)
class _Looked:
    """A node that the kernel knows, and how often it looked it up."""

    node: Node
    lookups: int


class _Nodes:
    """The nodes that the kernel knows, by number. A node's number is never given again.

    The kernel keeps more of each than we do, and forgets it when its memory runs short: that bounds
    them. What is large, the names in a directory, is bounded apart from them (`NameTables`).
    """

    def __init__(self, root: Node) -> None:
        self._numbers = itertools.count(fuse.ROOT)
        self._known: dict[int, _Looked] = {}
        self._by_identity: dict[tuple[object, ...], int] = {}
        self.add(root)

    def get(self, number: int) -> Node:
        """Return a node.

        Raises:
            OSError: ESTALE, there is none.
        """
        looked = self._known.get(number)
        if looked is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return looked.node

    def add(self, node: Node) -> int:
        """Count a lookup of a node; return its number. Of one that may change, the last is kept."""
        number = self._by_identity.get(node.identity)
        if number is None:
            number = self._by_identity[node.identity] = next(self._numbers)
            self._known[number] = _Looked(node, 0)
        looked = self._known[number]
        if node.seconds < FOREVER:
            looked.node = node
        looked.lookups += 1
        return number

    def forget(self, number: int, lookups: int) -> None:
        """Take lookups back; a node without any is forgotten."""
        looked = self._known.get(number)
        if looked is None or number == fuse.ROOT:
            return
        looked.lookups -= lookups
        if looked.lookups <= 0:
            del self._known[number]
            del self._by_identity[looked.node.identity]


class TreeServer:
    """One mounted tree."""

    def __init__(self, fd: int, root: Directory) -> None:
        """Serve nothing yet.

        Args:
            fd: of /dev/fuse, which the caller closes.
            root: of the tree.
        """
        os.set_blocking(fd, False)
        self._fd = fd
        self._nodes = _Nodes(root)
        self._handles: dict[int, Opened | _Listed] = {}
        self._handle_numbers = itertools.count(1)
        self._waiting: dict[int, trio.CancelScope] = {}
        self._fewer = Pulse()
        self._input = memoryview(bytearray(fuse.BUFFER_SIZE))
        self._output = memoryview(bytearray(fuse.HEADER_SIZE + fuse.MAX_READ))
        self._tasks: trio.Nursery

    @property
    def open_files(self) -> int:
        """How many files are open."""
        return sum(not isinstance(handle, _Listed) for handle in self._handles.values())

    async def wait_unused(self) -> None:
        """Return once nothing is open, directories included, and no request waits."""
        while self._handles or self._waiting:
            await self._fewer.wait()

    async def run(self) -> None:
        """Serve until the tree is unmounted and nothing of it is open any more.

        Raises:
            KernelProtocolError: the kernel is too old.
        """
        try:
            async with trio.open_nursery() as self._tasks:
                try:
                    while True:
                        if not self._take_batch():
                            await trio.lowlevel.wait_readable(self._fd)
                        else:
                            await trio.lowlevel.checkpoint()
                except _UnmountedError:
                    self._tasks.cancel_scope.cancel()
        finally:
            for handle in self._handles.values():
                if not isinstance(handle, _Listed):
                    handle.close()

    def _take_batch(self) -> bool:
        """Take the requests that are here, answer reads; return whether there may be more."""
        reads: list[fuse.Read] = []
        interrupts: list[fuse.Interrupt] = []
        more = True
        for _ in range(_BATCH):
            request = self._next()
            if request is None:
                more = False
                break
            if isinstance(request, fuse.Read):
                reads.append(request)
            elif isinstance(request, fuse.Interrupt):
                interrupts.append(request)
            else:
                self._take(request)
        if len(reads) > 1:
            self._read_ahead(reads)
        for read in reads:
            self._read(read)
        for interrupt in interrupts:  # its read may have come in this batch, and waits only now
            if interrupt.target in self._waiting:
                self._waiting[interrupt.target].deadline = trio.current_time() + INTERRUPT_SECONDS
        return more or bool(reads)

    def _next(self) -> fuse.Request | None:
        """Return the next request; None if there is none now."""
        while True:
            try:
                length = os.readv(self._fd, [self._input])
            except BlockingIOError:
                return None
            except OSError as err:
                if err.errno in _GONE:
                    raise _UnmountedError from err
                if err.errno == errno.ENOENT:  # it was interrupted before it was read
                    continue
                raise
            return fuse.parse(self._input[:length])

    def _take(self, request: fuse.Request) -> None:
        match request:
            case fuse.Lookup(unique):
                self._start(unique, partial(self._look_up, request))
            case fuse.Open(unique):
                self._start(unique, partial(self._open, request))
            case fuse.ReadLink(unique, number):
                self._start(unique, partial(self._read_link, unique, number))
            case fuse.Forget(nodes):
                for number, lookups in nodes:
                    self._nodes.forget(number, lookups)
            case fuse.Init():
                self._send(fuse.reply_to_init(request))
            case _:
                assert not isinstance(request, fuse.Read | fuse.Interrupt), "_take_batch takes it"
                self._answer(request.unique, partial(self._reply_at_once, request))

    def _reply_at_once(self, request: fuse.Request) -> bytes:
        """Return the reply to a request for which nothing has to be waited for."""
        match request:
            case fuse.GetAttributes(unique, number):
                node = self._nodes.get(number)
                return fuse.attributes_of(unique, node.attributes(), node.seconds)
            case fuse.ReadDirectory(unique, handle):
                listed = self._handles.get(handle)
                entries = listed.entries if isinstance(listed, _Listed) else []
                return fuse.directory(unique, entries, request)
            case fuse.Seek(unique, handle, offset, whence):
                return fuse.sought(unique, self._opened(handle).seek(offset, whence))
            case fuse.Release(unique, handle):
                self._close(handle)
                return fuse.reply(unique)
            case fuse.StatFs(unique):
                return fuse.file_system(unique)
            case fuse.Destroy(unique):
                return fuse.reply(unique)
            case fuse.Refused(unique, error):
                return fuse.failed(unique, error)
        raise AssertionError(f"it is answered elsewhere: {request}")

    def _answer(self, unique: int, call: Callable[[], bytes]) -> None:
        """Send what `call` returns, or why it failed."""
        try:
            data = call()
        except Exception as err:  # see the module: confined to its request
            data = _failed(unique, err)
        self._send(data)

    def _start(self, unique: int, work: Callable[[], Awaitable[_Reply]]) -> None:
        """Answer in a task, which ends when the kernel interrupts the request."""
        scope = self._waiting[unique] = trio.CancelScope()
        self._tasks.start_soon(self._answer_later, unique, work, scope)

    async def _answer_later(
        self, unique: int, work: Callable[[], Awaitable[_Reply]], scope: trio.CancelScope
    ) -> None:
        answer = _Reply(fuse.failed(unique, errno.EINTR))
        try:
            with scope:
                try:
                    answer = await work()
                except Exception as err:  # see the module: confined to its request
                    answer = _Reply(_failed(unique, err))
        finally:
            del self._waiting[unique]
            self._fewer.notify()
        if not self._send(answer.data):
            answer.undo()

    async def _look_up(self, request: fuse.Lookup) -> _Reply:
        folder = self._nodes.get(request.node)
        if not isinstance(folder, Directory):
            raise _error(errno.ENOTDIR)
        try:
            node = await folder.find(request.name)
        except NotHereError as err:
            _log.warning("%s", _words(err))
            node = None
        if node is None:
            return _Reply(fuse.not_found(request.unique, NOT_FOUND_SECONDS))
        number = self._nodes.add(node)
        data = fuse.found(
            *(request.unique, number, node.attributes(), node.seconds),
            name_seconds=min(node.seconds, folder.seconds),  # another file may get the name
        )
        return _Reply(data, partial(self._nodes.forget, number, 1))

    async def _open(self, request: fuse.Open) -> _Reply:
        node = self._nodes.get(request.node)
        if request.flags & os.O_ACCMODE != os.O_RDONLY:
            raise _error(errno.EROFS)
        if isinstance(node, Directory):
            handle = self._hold(_Listed(await _list(node)))
            return _Reply(fuse.opened(request.unique, handle), partial(self._close, handle))
        if not isinstance(node, File):
            raise _error(errno.EINVAL)
        handle = self._hold(await node.open())
        data = fuse.opened(request.unique, handle, fuse.KEEP_CACHE)
        return _Reply(data, partial(self._close, handle))

    async def _read_link(self, unique: int, number: int) -> _Reply:
        node = self._nodes.get(number)
        if not isinstance(node, Link):
            raise _error(errno.EINVAL)
        return _Reply(fuse.reply(unique, await node.target()))

    def _read_ahead(self, reads: Sequence[fuse.Read]) -> None:
        """Prepare for reads that came together."""
        by_handle: dict[int, list[tuple[int, int]]] = {}
        for read in reads:
            by_handle.setdefault(read.handle, []).append((read.offset, read.length))
        for handle, ranges in by_handle.items():
            opened = self._handles.get(handle)
            if len(ranges) > 1 and opened is not None and not isinstance(opened, _Listed):
                try:
                    opened.read_ahead(ranges)
                except Exception:  # each read is made all the same, and tells its own error
                    _log.exception("a preparation of reads failed")

    def _read(self, request: fuse.Read) -> None:
        """Answer a read, or have a task answer it that fetches what is missing."""
        view = self._output[: fuse.HEADER_SIZE + min(request.length, fuse.MAX_READ)]
        try:
            opened = self._opened(request.handle)
            self._send(_filled(opened, request, view))
        except Missing as missing:
            lacking = missing.with_traceback(None)
            self._start(request.unique, partial(self._read_later, opened, request, lacking))
        except Exception as err:  # see the module: confined to its request
            self._send(_failed(request.unique, err))

    async def _read_later(self, opened: Opened, request: fuse.Read, missing: Missing) -> _Reply:
        data: list[memoryview] = []

        def fill() -> None:
            # Made anew in each try: thousands of reads may wait, and a waiting one needs no buffer.
            size = fuse.HEADER_SIZE + min(request.length, fuse.MAX_READ)
            data.append(_filled(opened, request, memoryview(bytearray(size))))

        await complete(opened, fill, missing)
        return _Reply(data[0])

    def _opened(self, handle: int) -> Opened:
        opened = self._handles.get(handle)
        if opened is None or isinstance(opened, _Listed):
            raise _error(errno.EBADF)
        return opened

    def _hold(self, opened: Opened | _Listed) -> int:
        handle = next(self._handle_numbers)
        self._handles[handle] = opened
        return handle

    def _close(self, handle: int) -> None:
        opened = self._handles.pop(handle, None)
        self._fewer.notify()
        if opened is not None and not isinstance(opened, _Listed):
            opened.close()

    def _send(self, data: bytes | memoryview) -> bool:
        """Send a reply; return whether the kernel took it. It no longer wants that of a process
        that was killed, and refuses one that does not fit its request: a bug of ours."""
        try:
            os.write(self._fd, data)
        except OSError as err:
            if err.errno != errno.ENOENT and err.errno not in _GONE:
                _log.error("the kernel refused a reply of %d bytes: %s", len(data), err)
            return False
        return True


async def _list(folder: Directory) -> list[fuse.DirectoryEntry]:
    return [folder.entry(b"."), folder.entry(b".."), *await folder.entries()]


def _filled(opened: Opened, request: fuse.Read, view: memoryview) -> memoryview:
    """Return the reply to a read, made in `view`; errors as of `Opened.read_into`."""
    count = opened.read_into(request.offset, view[fuse.HEADER_SIZE :])
    fuse.put_header(view, request.unique, count)
    return view[: fuse.HEADER_SIZE + count]


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _failed(unique: int, err: Exception) -> bytes:
    """Return the reply to a request that failed; the log tells why."""
    if isinstance(err, OSError):
        return fuse.failed(unique, err.errno or errno.EIO)
    if not isinstance(err, P2pcloopError):
        _log.error("a request failed by a bug of p2pcloop", exc_info=err)
        return fuse.failed(unique, errno.EIO)
    _log.warning("%s", _words(err))
    if isinstance(err, StorageError):
        return fuse.failed(unique, err.errno)
    code = next((code for kind, code in _CODES.items() if isinstance(err, kind)), errno.EIO)
    return fuse.failed(unique, code)


def _words(err: P2pcloopError) -> str:
    return printable(f"{err}; {err.hint}" if err.hint else str(err))
