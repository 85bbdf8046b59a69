"""The only queue of a process waits for kicks by itself, and yet other tasks have their turn."""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.protocol.virtio_blk import Kind, Status
from p2pcloop.protocol.virtqueue import F_EVENT_IDX
from p2pcloop.store.home import Home
from p2pcloopd.block.opening import Disk
from p2pcloopd.block.server import moment_of
from p2pcloopd.block.source import LocalBackend, StoredBackend
from p2pcloopd.block.spec import BlockServerSpec
from p2pcloopd.block.vhost_queue import MOMENT
from p2pcloopd.block.vhost_server import serve_front_end
from tests.support.front_end import FrontEnd
from tests.support.images import make_layer
from tests.support.memory_device import MemoryBackend, MemoryDevice
from tests.support.waiting import BOUND

SIZE = 1 << 20
REQUESTS = 10_000
"""More than a queue can answer in any turn, and as many as the front end's memory holds."""


class _Waits(trio.abc.Instrument):
    """Counts how often trio waited for events."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += timeout > 0


class Server:
    """A block server that runs trio in a thread of its own."""

    def __init__(self, moment: float) -> None:
        self.device = MemoryDevice(SIZE)
        self.waits = _Waits()
        self.turns = 0
        self._moment = moment

    @asynccontextmanager
    async def guest(self) -> AsyncIterator[FrontEnd]:
        """Serve a front end."""
        ours, theirs = socket.socketpair()
        guest = FrontEnd(trio.socket.from_stdlib_socket(ours))
        try:
            with trio.fail_after(BOUND):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.to_thread.run_sync, self._run, theirs)
                    await guest.connect(F_EVENT_IDX)
                    yield guest
                    guest.connection.shutdown(socket.SHUT_WR)
        finally:
            guest.close()

    def _run(self, theirs: socket.socket) -> None:
        trio.run(self._serve, theirs, instruments=[self.waits])

    async def _serve(self, theirs: socket.socket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_turns)
            connection = trio.socket.from_stdlib_socket(theirs)
            backend = MemoryBackend(self.device, automatic=True)
            await serve_front_end(backend, connection, moment=self._moment)
            nursery.cancel_scope.cancel()

    async def _take_turns(self) -> None:
        while True:
            await trio.sleep(0.001)
            self.turns += 1


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("for_guest", [True, False])
def test_only_a_guest_whose_image_is_here_has_moments(
    tmp_path: Path, *, whole: bool, for_guest: bool
) -> None:
    other: Any = None
    device = ImageDevice(MergedImage([make_layer([], [], 16)]))
    stored = StoredBackend(device, other, other, other, whole=whole)
    spec = BlockServerSpec(Home(tmp_path), other, for_guest=for_guest)
    moment = MOMENT if whole and for_guest else 0
    assert moment_of(spec, Disk(stored, None)) == moment
    assert moment_of(spec, Disk(stored, LocalBackend(device))) == 0
    assert moment_of(spec, Disk(LocalBackend(device), None)) == (MOMENT if for_guest else 0)


async def test_kicks_that_come_soon_are_awaited_without_trio() -> None:
    waits: list[int] = []
    for moment in (0.0, 1.0):
        server = Server(moment)
        async with server.guest() as guest:
            for _ in range(200):
                before = server.waits.count
                assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK
                waits.append(server.waits.count - before)
    without, with_moments = sum(waits[:200]), sum(waits[200:])
    assert with_moments < without / 2


async def test_other_tasks_have_their_turn_while_kicks_come() -> None:
    server = Server(0.002)
    async with server.guest() as guest:
        for _ in range(REQUESTS):
            assert (await guest.request(Kind.GET_ID, wanted=1))[0] == Status.OK
            if server.turns >= 5:
                break
    assert server.turns >= 5


async def test_a_request_that_waits_for_bytes_is_never_kept_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(1.0)
    waited_while_bytes_lacked: list[bool] = []

    class Poll:
        """Waits for no kick; tells whether a request lacked bytes meanwhile."""

        def register(self, _descriptor: int, _events: int) -> None: ...

        def poll(self, _milliseconds: float) -> list[tuple[int, int]]:
            waited_while_bytes_lacked.append(server.device.lacks(0, 4096))
            return []

    monkeypatch.setattr(select, "poll", Poll)
    async with server.guest() as guest:
        assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK
        server.device.withhold(0, 4096)
        assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK
        assert (await guest.request(Kind.IN, wanted=512))[0] == Status.OK
    assert waited_while_bytes_lacked  # while nothing lacked
    assert not any(waited_while_bytes_lacked)
