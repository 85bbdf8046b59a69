"""What a guest in QEMU needs to go on, before QEMU is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pcloop.errors import MismatchError
from p2pcloop.formats.machine_state import MachineState
from p2pcloopd.guest.console.serial_line import SerialLine
from p2pcloopd.guest.machine import qemu
from p2pcloopd.guest.machine.identity import Shape
from p2pcloopd.guest.machine.qemu import QemuMachine, connected
from p2pcloopd.guest.machine.qemu_command import PcCard
from p2pcloopd.guest.machine.resume import Resume
from tests.guest.test_identity import HOST, machine
from tests.support.waiting import BOUND

HAD = PcCard("network", "none", -1, "52:54:00:70:32:01", 15900)


def shape(*cards: PcCard) -> Shape:
    return Shape("tcg", 1 << 29, 1, cards, None, "kernel")


def test_a_card_is_what_it_was_and_leads_where_it_is_to_lead() -> None:
    tap = PcCard("network", "tap", 9, "02:00:00:00:00:07", 1500)
    assert connected(shape(HAD), [tap]) == [replace(HAD, kind="tap", fd=9)]
    assert connected(shape(HAD), []) == [HAD]


def test_a_guest_gets_no_card_that_it_had_not() -> None:
    display = PcCard("display", "dgram", 9, "52:54:00:70:32:02", 15900)
    with pytest.raises(MismatchError, match="no network card") as caught:
        connected(shape(HAD), [display])
    assert "--net" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("state", "accelerator"), [(machine(), "tcg"), (machine(accelerator="kvm"), "kvm")]
)
def test_a_guest_goes_on_by_what_ran_it(
    state: MachineState, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "this_host", lambda _: HOST)
    resume = Resume(state, Path("/memory"), trio.sleep_forever)
    assert QemuMachine(None, resume).name == f"qemu ({accelerator})"
    monkeypatch.setattr(qemu, "this_host", lambda _: replace(HOST, qemu="7.1.0"))
    with pytest.raises(MismatchError):
        QemuMachine(None, resume)


async def test_what_is_typed_before_a_guest_is_there_waits() -> None:
    line = SerialLine()
    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.send, b"typed")
            await trio.testing.wait_all_tasks_blocked()
            line.theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                line.theirs.recv(100)
            line.listens.set()
        assert line.theirs.recv(100) == b"typed"
        line.close()
        # Nobody waits for a guest that never comes.
        line = SerialLine()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.send, b"typed")
            await trio.testing.wait_all_tasks_blocked()
            line.release()
    line.close()
