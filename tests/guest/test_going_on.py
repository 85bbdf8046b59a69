"""When it is said of a resumed guest that it goes on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from p2pcloopd.guest import control_socket
from p2pcloopd.guest.channel.channel import Channel
from p2pcloopd.guest.control_socket import Reachable, run_reachable
from p2pcloopd.guest.events import Events
from p2pcloopd.guest.lifecycle import Attend
from p2pcloopd.guest.machine import qemu
from p2pcloopd.guest.machine.qemu_boot import QemuBoot
from p2pcloopd.guest.machine.qemu_command import Pc, RunningKernel
from p2pcloopd.guest.machine.resume import Resume
from p2pcloopd.guest.network import slirp
from p2pcloopd.guest.result import GuestResult
from p2pcloopd.guest.running import RunningGuest
from p2pcloopd.guest.spec import GuestSpec
from tests.guest.test_identity import machine
from tests.support.played_qemu import Qemu
from tests.support.waiting import BOUND

PC = Pc(Path("/"), "tcg", "", 1 << 29, -1, (), (), -1, -1, RunningKernel())


async def device_state() -> bytes:
    return b"state"


def resume_of_nothing() -> Resume:
    return Resume(machine(), Path("/memory"), device_state)


async def test_a_guest_goes_on_once_qemu_has_its_state_and_lets_it_go() -> None:
    resume = resume_of_nothing()
    ours, theirs = trio.socket.socketpair()
    qemu = Qemu(theirs)
    parts = cast("Any", SimpleNamespace(listens=trio.Event()))
    boot = QemuBoot(parts, parts, ours, PC, None, resume)
    with trio.fail_after(BOUND), ours, theirs:
        async with trio.open_nursery() as nursery:
            for run in (boot.attend, qemu.run):
                nursery.start_soon(run)
            while "migrate-incoming" not in qemu.names():
                await trio.testing.wait_all_tasks_blocked()
            assert not resume.gone_on.is_set()
            await qemu.tell("MIGRATION", status="completed")
            await resume.gone_on.wait()
            assert qemu.names()[-1] == "cont"
            nursery.cancel_scope.cancel()
        for fd in qemu.files.values():
            os.close(fd)


async def test_a_resumed_guest_has_started_once_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    resume = resume_of_nothing()
    started: list[str] = []

    async def attended(_: GuestSpec, attend: Attend, _events: Events) -> GuestResult:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attend, nursery, RunningGuest())
            await trio.testing.wait_all_tasks_blocked()
            assert not started, "QEMU has not loaded its state"
            resume.gone_on.set()
            await trio.testing.wait_all_tasks_blocked()
            assert started == ["g1"]
            nursery.cancel_scope.cancel()
        return GuestResult(0, "poweroff", None, 0.0, None, 0, "qemu", None)

    monkeypatch.setattr(control_socket, "run_attended", attended)
    log = cast("Any", SimpleNamespace(write=lambda _: None))
    reach = Reachable("g1", None, Channel(None), log, lambda: started.append("g1"))
    with trio.fail_after(BOUND):
        spec = GuestSpec(Path("/disk"), resume=resume)
        await run_reachable(reach, spec, Events())


async def test_a_resumed_guest_that_boots_again_has_its_network_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[bool] = []

    @asynccontextmanager
    async def user_network(_say: object, **options: Any) -> AsyncIterator[Any]:
        waits.append(options["plugged"] is not None)
        yield SimpleNamespace(fileno=lambda: 5)

    monkeypatch.setattr(slirp, "user_network", user_network)
    spec = GuestSpec(Path("/disk"), network="user", resume=resume_of_nothing())
    async with AsyncExitStack() as stack:
        for resume in (spec.resume, None):
            await qemu._cards(spec, resume, stack)
    assert waits == [True, False]
