"""The state of a machine's devices, between this process and a QEMU that a task plays."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pcloop.errors import GuestError, MismatchError
from p2pcloop.protocol.qmp import MachineEvent
from p2pcloopd.guest.machine import device_state
from p2pcloopd.guest.machine.device_state import DeviceStates
from tests.support.played_qemu import Qemu, connected
from tests.support.waiting import BOUND

STATE = bytes(range(256)) * 100


@asynccontextmanager
async def states(firmware: Path = Path("/none")) -> AsyncIterator[tuple[DeviceStates, Qemu]]:
    made: list[DeviceStates] = []

    def take(event: MachineEvent) -> None:
        made[0].take_event(event)

    with trio.fail_after(BOUND):
        async with connected(take) as (qmp, qemu):
            made.append(DeviceStates(qmp, firmware))
            yield made[0], qemu


async def ending(qemu: Qemu, command: str, status: str) -> None:
    """Tell how a command ended, once it was given."""
    while command not in qemu.names():
        await trio.lowlevel.checkpoint()
    await qemu.tell("MIGRATION", status="active")
    await qemu.tell("MIGRATION", status=status)


def sending(qemu: Qemu, state: bytes) -> Callable[[dict[str, Any]], Any]:
    def migrate(arguments: dict[str, Any]) -> Any:
        fd = qemu.files.pop(arguments["uri"].removeprefix("fd:"))
        os.write(fd, state)
        os.close(fd)
        return {}

    return migrate


async def test_a_state_is_what_qemu_sends() -> None:
    async with states() as (devices, qemu):
        qemu.answers["migrate"] = sending(qemu, STATE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ending, qemu, "migrate", "completed")
            assert await devices.take() == STATE
        (given,) = [given for name, given in qemu.asked if name == "migrate-set-capabilities"]
        wanted = {each["capability"] for each in given["capabilities"] if each["state"]}
        assert "x-ignore-shared" in wanted  # the memory is no part of it
        assert qemu.names()[-1] == "migrate"


async def test_a_state_lacks_the_firmware_that_its_reader_has(tmp_path: Path) -> None:
    page = bytes(range(256)) * 16
    firmware = tmp_path / "bios.bin"
    firmware.write_bytes(page)
    sent = b"QEVM" + page + b"devices"
    async with states(firmware) as (devices, qemu), trio.open_nursery() as nursery:
        qemu.answers["migrate"] = sending(qemu, sent)
        nursery.start_soon(ending, qemu, "migrate", "completed")
        taken = await devices.take()
    assert page not in taken
    async with states(firmware) as (devices, qemu), trio.open_nursery() as nursery:
        nursery.start_soon(ending, qemu, "migrate-incoming", "completed")
        await devices.give(taken)
        (file,) = qemu.files.values()
        assert os.pread(file, 1 << 16, 0) == sent
    async with states() as (devices, qemu):
        with pytest.raises(MismatchError, match="is not that of the state"):
            await devices.give(taken)
        assert {*qemu.names()} <= {"qmp_capabilities"}  # it is greeted at the same time


async def test_other_tasks_go_on_while_firmware_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    went_on = trio.Event()

    def searching(state: bytes, firmware: bytes) -> bytes:
        trio.from_thread.run_sync(went_on.set)
        return state + firmware

    monkeypatch.setattr(device_state, "without_firmware", searching)
    monkeypatch.setattr(device_state, "with_firmware", searching)
    monkeypatch.setattr(device_state, "leaves_out", lambda _state: True)
    async with states() as (devices, qemu), trio.open_nursery() as nursery:
        qemu.answers["migrate"] = sending(qemu, STATE)
        nursery.start_soon(ending, qemu, "migrate", "completed")
        assert await devices.take() == STATE
        assert went_on.is_set()
        went_on = trio.Event()
        nursery.start_soon(ending, qemu, "migrate-incoming", "completed")
        await devices.give(STATE)
        assert went_on.is_set()


async def test_a_state_that_qemu_does_not_save_is_none() -> None:
    async with states() as (devices, qemu):
        qemu.answers["migrate"] = sending(qemu, STATE[:7])
        qemu.answers["query-migrate"] = lambda _: {"status": "failed", "error-desc": "no luck"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ending, qemu, "migrate", "failed")
            with pytest.raises(GuestError, match="no luck"):
                await devices.take()


async def test_a_state_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_state, "MAX_DEVICE_STATE", len(STATE) - 1)
    async with states() as (devices, qemu):
        qemu.answers["migrate"] = sending(qemu, STATE)
        with pytest.raises(GuestError, match="cannot be suspended"):
            await devices.take()


async def test_a_qemu_that_comes_to_no_end(autojump_clock: MockClock) -> None:
    async with states() as (devices, qemu):
        qemu.answers["migrate"] = sending(qemu, STATE)
        with pytest.raises(GuestError, match="longer than 60 s"):
            await devices.take()
    assert autojump_clock.current_time() >= 60


async def test_a_state_that_is_not_waited_for_is_given_up(autojump_clock: MockClock) -> None:
    """While QEMU sends, it lets no guest go on."""
    async with states() as (devices, qemu):
        qemu.answers["migrate"] = sending(qemu, STATE)
        statuses = iter(["cancelling", "cancelling", "cancelled"])
        qemu.answers["query-migrate"] = lambda _: {"status": next(statuses)}
        with trio.move_on_after(1) as scope:
            await devices.take()
        assert scope.cancelled_caught
        assert qemu.names()[-4:] == ["migrate_cancel", *["query-migrate"] * 3]
        assert next(statuses, None) is None


async def test_a_state_is_given_whole() -> None:
    async with states() as (devices, qemu):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ending, qemu, "migrate-incoming", "completed")
            await devices.give(STATE)
        (fd,) = qemu.files.values()
        assert os.pread(fd, len(STATE) + 1, 0) == STATE
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0


async def test_a_qemu_that_ends_while_it_loads_is_an_error() -> None:
    async with states() as (devices, qemu):

        async def end() -> None:
            while "migrate-incoming" not in qemu.names():
                await trio.lowlevel.checkpoint()
            qemu.sock.shutdown(socket.SHUT_RDWR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            with pytest.raises(GuestError, match="ended"):
                await devices.give(STATE)
