"""The operations that suspend a guest; the guest is played."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pcloop.errors import BusyError, GuestError, NotHereError
from p2pcloop.formats.packing import Fields
from p2pcloopd.guest import suspending as suspendings
from p2pcloopd.guest.channel.channel import Channel
from p2pcloopd.guest.machine.qemu_memory import FileMemory, new_memory
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.suspending import Suspends

PAGE = 4096


class Guest:
    """What `Suspends` has of a running guest: tells what becomes of it."""

    def __init__(self) -> None:
        self.became: list[str] = []
        self.state: tuple[str, int] | None = None
        self.refusal: GuestError | BusyError | None = None
        self.memory = new_memory(8 * PAGE)
        os.pwrite(self.memory, b"m" * PAGE, 2 * PAGE)

    @asynccontextmanager
    async def captured(self) -> AsyncIterator[Any]:
        if self.refusal is not None:
            raise self.refusal
        self.became.append("stopped")
        ended: list[bool] = []
        try:
            yield SimpleNamespace(
                memory=FileMemory(self.memory, 8 * PAGE),
                device_state=b"QEVM",
                machine=lambda **facts: SimpleNamespace(to_map=lambda: facts),
                end=lambda: ended.append(True),
            )
        finally:
            self.became.append("ended" if ended else "goes on")


class Call:
    """One request; keeps its events."""

    def __init__(self, op: str, args: dict[str, Any]) -> None:
        self.op = op
        self.fields = Fields(args, op)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.told = trio.Event()

    async def emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))
        self.told.set()

    def read(self, key: str) -> bytes:
        """The content of a file that was told."""
        path = self.events[0][1][key]
        return Path(os.fsdecode(path)).read_bytes()


def order(folder: Path, *, goes_on: bool = False) -> Call:
    facts = {"disk_length": 7 * PAGE, "network": "none", "host_name": ""}
    return Call("suspend", {"folder": os.fsencode(folder), "goes_on": goes_on, **facts})


SERVED = {"state": "@key/g1-state", "version": 3}


@pytest.fixture
def guest() -> Guest:
    return Guest()


@asynccontextmanager
async def suspending(guest: Guest, **more: Any) -> AsyncIterator[Suspends]:
    async def copy(folder: Path) -> Path:
        (folder / "overlay").write_bytes(b"changes")
        return folder / "overlay"

    spec = GuestSpec(Path("vda"), **({"copy_disk": copy} | more))
    async with trio.open_nursery() as nursery:
        # It has no agent: its clock stays.
        channel = Channel(None, "none")
        yield Suspends(guest, channel, spec, nursery)  # type: ignore[arg-type]  # all that is used


async def perform(suspends: Suspends, call: Call) -> dict[str, Any]:
    return await suspends.perform(call, call.fields)  # type: ignore[arg-type]  # as above


async def test_a_guest_ends_once_its_state_is_served(guest: Guest, tmp_path: Path) -> None:
    async with suspending(guest) as suspends, trio.open_nursery() as nursery:
        call = order(tmp_path)
        nursery.start_soon(perform, suspends, call)
        await call.told.wait()
        ((event, fields),) = call.events
        assert event == "captured"
        assert (call.read("overlay"), call.read("device_state")) == (b"changes", b"QEVM")
        assert call.read("memory") == bytes(2 * PAGE) + b"m" * PAGE + bytes(5 * PAGE)
        assert fields["machine"]["disk_length"] == 7 * PAGE
        await wait_all_tasks_blocked()
        assert guest.became == ["stopped"], "until then it rests"
        await perform(suspends, Call("suspend_end", dict(SERVED)))
    assert guest.became == ["stopped", "ended"]
    assert guest.state == ("@key/g1-state", 3)


async def test_a_guest_that_goes_on_does_so_before_its_state_is_made(
    guest: Guest, tmp_path: Path
) -> None:
    async with suspending(guest) as suspends, trio.open_nursery() as nursery:
        call = order(tmp_path, goes_on=True)
        nursery.start_soon(perform, suspends, call)
        await call.told.wait()
        assert guest.became == ["stopped", "goes on"]
        os.pwrite(guest.memory, b"later", 2 * PAGE)
        assert call.read("memory")[2 * PAGE :][:PAGE] == b"m" * PAGE
        await perform(suspends, Call("suspend_end", dict(SERVED)))
    assert guest.state == ("@key/g1-state", 3)


async def test_the_clock_of_a_guest_that_was_not_stopped_is_left(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[object] = []

    async def wake_up(*words: object) -> None:
        woken.append(words)

    monkeypatch.setattr(suspendings, "wake_up", wake_up)
    async with suspending(guest) as suspends:
        guest.refusal = BusyError("the guest is being suspended or resumed already")
        with pytest.raises(BusyError):
            await perform(suspends, order(tmp_path))
        await wait_all_tasks_blocked()
        assert woken == []
        guest.refusal = GuestError("QEMU writes no state")
        with pytest.raises(GuestError):
            await perform(suspends, order(tmp_path))
        await wait_all_tasks_blocked()
        assert len(woken) == 1


async def test_a_guest_whose_suspend_is_given_up_goes_on(guest: Guest, tmp_path: Path) -> None:
    async with suspending(guest) as suspends:
        with trio.CancelScope() as client:
            call = order(tmp_path)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(perform, suspends, call)
                await call.told.wait()
                client.cancel()
        assert guest.became == ["stopped", "goes on"]
        assert guest.state is None
        with pytest.raises(NotHereError):
            await perform(suspends, Call("suspend_end", dict(SERVED)))


async def test_a_disk_that_cannot_be_copied_lets_the_guest_go_on(
    guest: Guest, tmp_path: Path
) -> None:
    async def copy(_folder: Path) -> Path:
        raise GuestError("the disk is full")

    async with suspending(guest, copy_disk=copy) as suspends:
        with pytest.raises(GuestError, match="full"):
            await perform(suspends, order(tmp_path))
    assert guest.became == ["stopped", "goes on"]


async def test_one_suspend_at_a_time(guest: Guest, tmp_path: Path) -> None:
    async with suspending(guest) as suspends, trio.open_nursery() as nursery:
        nursery.start_soon(perform, suspends, order(tmp_path))
        await wait_all_tasks_blocked()
        with pytest.raises(BusyError):
            await perform(suspends, order(tmp_path))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"display": object()}, "draw on a server"),
        ({"more_disks": (Path("vdb"),)}, "second disk"),
        ({"copy_disk": None}, "cannot be copied"),
    ],
)
async def test_what_cannot_be_suspended_says_why(
    guest: Guest, tmp_path: Path, spec: dict[str, Any], why: str
) -> None:
    async with suspending(guest, **spec) as suspends:
        with pytest.raises(GuestError, match=why):
            await perform(suspends, order(tmp_path))
    assert guest.became == []
