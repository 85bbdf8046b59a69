"""Workers that are killed between any two of their steps, and a kernel that counts the answers."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.protocol import fuse
from p2pcloopd.block import memory_requests, memory_server
from p2pcloopd.block.memory_file import MemoryFile
from p2pcloopd.block.memory_requests import RequestTable, make_table
from p2pcloopd.block.memory_server import MemoryServer
from p2pcloopd.block.spec import MemoryPart

PAGE = 4096
PAGES = 8
CONTENT = b"".join(bytes([65 + page]) * PAGE for page in range(PAGES))


MAX_IDLE = 1000
"""Rounds in which a worker could have gone on, and did not answer."""

_CLEAR = RequestTable.clear


class KilledError(BaseException):
    """SIGKILL: nothing else of the worker's happens."""


class Steps:
    """Kills a worker before or after one of its steps: those that others can see."""

    def __init__(self, left: int | None) -> None:
        """`left`: halves of steps that it has yet; None for all."""
        self._left = left

    def do(self, step: Callable[[], int | None]) -> int | None:
        self._count()
        done = step()
        self._count()
        return done

    def _count(self) -> None:
        if self._left is None:
            return
        if not self._left:
            raise KilledError
        self._left -= 1


class Backend:
    """A device of which some pages come only when they are asked for."""

    def __init__(self, late: Iterable[int]) -> None:
        self._late = set(late)
        self.device = self

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        if offset // PAGE in self._late:
            raise Missing([ByteRange(bytes(20), offset, PAGE)])
        views[0][:] = CONTENT[offset : offset + len(views[0])]

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Decode nothing."""

    async def supply(self, missing: Missing) -> None:
        await trio.lowlevel.checkpoint()
        self._late -= {wanted.offset // PAGE for wanted in missing.ranges}


class Kernel:
    """The other end of a worker's /dev/fuse: a socket that keeps messages apart, too."""

    def __init__(self, stack: ExitStack) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket, self._other = stack.enter_context(ours), stack.enter_context(theirs)
        table = make_table()
        stack.callback(os.close, table)
        self.file = MemoryFile(len(CONTENT), theirs.fileno(), table, -1)
        self.answers: dict[int, bytes] = {}
        ours.setblocking(False)

    def ask(self, unique: int, page: int) -> None:
        body = struct.pack("=QQIIQII", 0, page * PAGE, PAGE, 0, 0, 0, 0)
        header = struct.pack("=IIQQIIIHH", 40 + len(body), 15, unique, 1, 0, 0, 0, 0, 0)
        self._socket.send(header + body)

    def forget(self, node: int) -> None:
        body = struct.pack("=Q", 1)
        self._socket.send(struct.pack("=IIQQIIIHH", 48, 2, 0, node, 0, 0, 0, 0, 0) + body)

    def take_answers(self) -> None:
        """Take what was answered. A second answer is refused, and would have been the same."""
        while True:
            try:
                answer = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            (unique,) = struct.unpack_from("=8xQ", answer)
            assert self.answers.setdefault(unique, answer) == answer


@given(
    pages=st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=12),
    late=st.sets(st.integers(0, PAGES - 1)),
    lives=st.lists(st.integers(0, 40), max_size=6),
    slots=st.integers(1, 6),
)
@settings(deadline=None)
def test_every_request_is_answered_whenever_workers_are_killed(
    pages: list[int], late: set[int], lives: list[int], slots: int
) -> None:
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(memory_requests, "SLOTS", slots)
        kernel = Kernel(stack)
        for unique, page in enumerate(pages, 1):
            kernel.ask(unique, page)
            kernel.forget(page)
        for life in [*lives, None]:
            trio.run(_live, kernel, late, Steps(life), len(pages), patch)
        assert kernel.answers == {
            unique: fuse.reply(unique, CONTENT[page * PAGE : (page + 1) * PAGE])
            for unique, page in enumerate(pages, 1)
        }
        table = RequestTable(kernel.file.requests)
        assert list(table.unanswered()) == []
        table.close()


async def _live(
    kernel: Kernel, late: set[int], steps: Steps, wanted: int, patch: pytest.MonkeyPatch
) -> None:
    """A worker's life: until it is killed, or all is answered."""
    _count_steps(steps, patch)
    part = MemoryPart(0, len(CONTENT), kernel.file)

    async def live() -> None:
        try:
            await MemoryServer(Backend(late), part, kernel.file).run()  # type: ignore[arg-type]
        except KilledError:
            pass
        except BaseExceptionGroup as group:
            _, rest = group.split(KilledError)
            if rest is not None:  # it was cancelled, at the end
                raise rest from None
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        idle = 0
        while True:
            await trio.testing.wait_all_tasks_blocked()
            known = len(kernel.answers)
            kernel.take_answers()
            if len(kernel.answers) == wanted:
                nursery.cancel_scope.cancel()
            idle = idle + 1 if len(kernel.answers) == known else 0
            assert idle < MAX_IDLE, "a request is lost"
            await trio.lowlevel.checkpoint()


def _count_steps(steps: Steps, patch: pytest.MonkeyPatch) -> None:
    class System:
        """What a worker asks of the system."""

        set_blocking = staticmethod(os.set_blocking)

        @staticmethod
        def readv(fd: int, views: Sequence[memoryview]) -> int | None:
            return steps.do(lambda: os.readv(fd, views))

        @staticmethod
        def write(fd: int, data: bytes | memoryview) -> int | None:
            return steps.do(lambda: os.write(fd, data))

    def clear(table: RequestTable, number: int) -> None:
        steps.do(lambda: _CLEAR(table, number))

    patch.setattr(memory_server, "os", System)
    patch.setattr(RequestTable, "clear", clear)
