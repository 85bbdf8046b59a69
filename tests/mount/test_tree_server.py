"""The server of a tree; the kernel's requests come over a socket instead of /dev/fuse."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.protocol.fuse import DirectoryEntry, Operation
from p2pcloopd.mount.nodes import Directory, File, Node, Opened, Text
from p2pcloopd.mount.tree_server import TreeServer
from tests.support.waiting import BOUND

ROOT = 1


class Kernel:
    """The kernel's side."""

    def __init__(self, end: socket.socket) -> None:
        self._end = trio.socket.from_stdlib_socket(end)
        self._fd = end.fileno()

    def send(self, unique: int, operation: int, body: bytes = b"", *, node: int = ROOT) -> None:
        head = struct.pack("=IIQQ16x", 40 + len(body), operation, unique, node)
        os.write(self._fd, head + body)

    async def answer(self) -> tuple[int, int, bytes]:
        """A reply: of which request, its errno, its data."""
        with trio.fail_after(BOUND):
            data = await self._end.recv(1 << 16)
        length, error, unique = struct.unpack_from("=IiQ", data)
        assert length == len(data)
        return unique, -error, data[16:]

    async def ask(
        self, operation: int, body: bytes = b"", *, node: int = ROOT
    ) -> tuple[int, bytes]:
        self.send(2, operation, body, node=node)
        unique, error, data = await self.answer()
        assert unique == 2
        return error, data

    async def open(self, name: bytes) -> bytes:
        """Open a file of the root; return its handle."""
        error, data = await self.ask(Operation.LOOKUP, name + b"\0")
        assert error == 0
        (node,) = struct.unpack_from("=Q", data)
        error, data = await self.ask(Operation.OPEN, bytes(8), node=node)
        assert error == 0
        return data[:8]


def read_at(handle: bytes) -> bytes:
    """The body of a READ."""
    return handle + struct.pack("=QIIQII", 0, 4096, 0, 0, 0, 0)


class Top(Directory):
    """A root with some files, and names that show bugs of ours."""

    def __init__(self) -> None:
        super().__init__(("root",), changed=0, seconds=1)
        self.files: dict[bytes, Node] = {
            b"text": Text(("text",), b"content", changed=0, seconds=1),
            b"waits": Odd(Missing([ByteRange(bytes(20), 0, 1)])),
            b"broken": Odd(ZeroDivisionError("a bug")),
            b"soon": Soon(("soon",), b"content", changed=0, seconds=1),
        }

    async def find(self, name: bytes) -> Node | None:
        if name == b"bug":
            raise RuntimeError("a bug")
        return self.files.get(name)

    async def entries(self) -> Sequence[DirectoryEntry]:
        raise RuntimeError("a bug")


class Soon(Text):
    """A file whose opening takes a moment."""

    async def open(self) -> Opened:
        await trio.lowlevel.checkpoint()
        return await super().open()


class Odd(File):
    """A file that raises what it was made with when it is read, and waits without end for bytes."""

    def __init__(self, error: Exception) -> None:
        super().__init__((str(error),), changed=0, size=4096, seconds=1)
        self._error = error

    async def open(self) -> Odd:
        return self

    def read_into(self, offset: int, view: memoryview) -> int:  # noqa: ARG002
        raise self._error

    async def supply(self, missing: Missing) -> None:  # noqa: ARG002
        await trio.sleep_forever()

    def read_ahead(self, ranges: Sequence[tuple[int, int]]) -> None:  # noqa: ARG002
        raise self._error

    def seek(self, offset: int, whence: int) -> int:  # noqa: ARG002
        raise self._error

    def close(self) -> None:
        pass


@asynccontextmanager
async def serving() -> AsyncIterator[Kernel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(TreeServer(ours.fileno(), Top()).run)
            yield Kernel(theirs)
            nursery.cancel_scope.cancel()


async def test_no_single_request_ends_the_mount(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as kernel:
        broken = await kernel.open(b"broken")
        for operation, body, told in (
            (Operation.LOOKUP, b"a" * 4095 + b"\0", errno.ENAMETOOLONG),
            (Operation.LOOKUP, b"without an end", errno.EIO),
            (Operation.READ, b"short", errno.EIO),
            (Operation.LOOKUP, b"bug\0", errno.EIO),
            (Operation.OPENDIR, bytes(8), errno.EIO),
            (Operation.READ, read_at(broken), errno.EIO),
            (Operation.LSEEK, broken + bytes(16), errno.EIO),
            (4711, b"", errno.ENOSYS),
        ):
            assert await kernel.ask(operation, body) == (told, b"")
        assert caplog.text.count("Traceback") == 4, "each bug is told"
        kernel.send(3, Operation.READ, read_at(broken))
        kernel.send(4, Operation.READ, read_at(broken))  # both in a batch: they are read ahead
        assert {(await kernel.answer())[:2] for _ in "34"} == {(3, errno.EIO), (4, errno.EIO)}
        text = await kernel.open(b"text")
        assert await kernel.ask(Operation.READ, read_at(text)) == (0, b"content")


async def test_a_read_is_interrupted_in_the_batch_in_which_it_came() -> None:
    """Else the process that a signal reached would wait for its peers all the same."""
    async with serving() as kernel:
        waits = await kernel.open(b"waits")
        kernel.send(3, Operation.READ, read_at(waits))
        kernel.send(5, Operation.INTERRUPT, struct.pack("=Q", 3))
        assert await kernel.answer() == (3, errno.EINTR, b"")


async def test_a_signal_does_not_fail_what_is_answered_soon() -> None:
    """As qemu-io got EINTR from open(2) of an image that was here: a timer's signal had come."""
    async with serving() as kernel:
        error, data = await kernel.ask(Operation.LOOKUP, b"soon\0")
        assert error == 0
        (node,) = struct.unpack_from("=Q", data)
        kernel.send(3, Operation.OPEN, bytes(8), node=node)
        kernel.send(5, Operation.INTERRUPT, struct.pack("=Q", 3))
        assert (await kernel.answer())[:2] == (3, 0)


async def test_a_read_is_interrupted_while_it_waits() -> None:
    async with serving() as kernel:
        waits = await kernel.open(b"waits")
        kernel.send(3, Operation.READ, read_at(waits))
        await trio.testing.wait_all_tasks_blocked()
        error, data = await kernel.ask(Operation.GETATTR, bytes(16))
        assert error == 0
        assert stat.S_ISDIR(struct.unpack_from("=I", data, 16 + 60)[0])
        kernel.send(5, Operation.INTERRUPT, struct.pack("=Q", 3))
        assert await kernel.answer() == (3, errno.EINTR, b"")
