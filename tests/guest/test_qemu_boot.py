"""A QEMU that runs, of which a task plays the monitor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from p2pcloop.errors import GuestError
from p2pcloopd.guest.machine import qemu_boot
from p2pcloopd.guest.machine.qemu_boot import QemuBoot
from p2pcloopd.guest.machine.qemu_command import Pc, RunningKernel
from tests.guest.test_identity import HOST
from tests.support.played_qemu import Qemu

PC = Pc(Path("/"), "tcg", "", 1 << 29, -1, (), (), -1, -1, RunningKernel())


class Relenting(Qemu):
    """Refuses a number of times to let its guest go on."""

    def __init__(self, sock: trio.socket.SocketType, refusals: int) -> None:
        super().__init__(sock)
        self._refusals = refusals

    async def _answer(self, command: dict[str, Any], fds: list[int]) -> None:
        if self.names().count("cont") == self._refusals:
            self.refused -= {"cont"}
        await super()._answer(command, fds)


async def suspend_in_vain(qemu: Qemu, boot: QemuBoot) -> None:
    """Have a guest captured by a QEMU that does not save its devices."""
    qemu.refused = {"migrate", "cont"}
    with pytest.raises(GuestError):
        async with boot.captured():
            pytest.fail("it has no device state")
    assert qemu.names()[-1] == "cont"


@pytest.mark.parametrize("refusals", [1, 3, 1 << 20])
async def test_a_guest_goes_on_though_qemu_refuses_at_first(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, refusals: int
) -> None:
    """QEMU does so a moment after it has told that a state is complete; the guest stood still for
    ever."""
    monkeypatch.setattr(qemu_boot, "this_host", lambda _: HOST)
    ours, theirs = trio.socket.socketpair()
    qemu = Relenting(theirs, refusals)
    parts = cast("Any", SimpleNamespace(listens=trio.Event()))
    boot = QemuBoot(parts, parts, ours, PC, None)
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            for run in (boot.attend, qemu.run):
                nursery.start_soon(run)
            await suspend_in_vain(qemu, boot)
            nursery.cancel_scope.cancel()
    tried = qemu.names().count("cont")
    assert tried == refusals + 1 if refusals < 9 else 1 < tried < refusals
    assert (autojump_clock.current_time() >= 60) == (refusals > 9)
