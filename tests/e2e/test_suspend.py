"""Guests in QEMU that are suspended, and go on in another QEMU."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pcloop.formats.machine_state import MachineState
from p2pcloop.making.local import inspect_file
from p2pcloop.store.home import Home
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import BlockServerSpec
from p2pcloopd.guest.channel.channel import Channel
from p2pcloopd.guest.events import Events
from p2pcloopd.guest.lifecycle import run_guest
from p2pcloopd.guest.machine.capture import Capture
from p2pcloopd.guest.machine.qemu_memory import pieces
from p2pcloopd.guest.machine.resume import Resume
from p2pcloopd.guest.running import RunningGuest
from p2pcloopd.guest.spec import GuestResult, GuestSpec
from p2pcloopd.guest.system.addresses import USER
from p2pcloopd.guest.system.initramfs import build_initramfs
from p2pcloopd.unix_listener import bind_unix_listener
from tests.support.boot_disks import stock_kernel
from tests.support.waiting import BOUND

pytestmark = pytest.mark.e2e

SLOW = 3 * BOUND
DISK = 32 << 20
MEMORY = 128 << 20


class Guest:
    """A running guest whose console a test types on and reads."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.printed = b""
        self.result: GuestResult | None = None
        self.handle = RunningGuest()
        self.ended = trio.Event()
        self._changed = trio.Event()

    def take(self, data: bytes) -> None:
        self.printed += data
        self._changed.set()
        self._changed = trio.Event()

    async def wait_for(self, pattern: bytes, start: int = 0) -> re.Match[bytes]:
        while (found := re.search(pattern, self.printed[start:], re.DOTALL)) is None:
            await self._changed.wait()
        return found

    async def sh(self, command: str) -> str:
        """Type a shell command and return what it prints."""
        start = len(self.printed)
        line = f"echo BEGIN''MARK; {command}; echo END''MARK\n"
        await self.handle.send_console(line.encode())
        found = await self.wait_for(rb"BEGINMARK\r*\n(.*)ENDMARK", start)
        return found[1].decode().replace("\r", "")

    async def execute(self, *words: str) -> bytes:
        """Run a command by the guest's agent, and return what it prints."""
        async with self.channel.command([word.encode() for word in words], tools=False) as command:
            command.end_input()
            said = b""
            while data := await command.stdout.read():
                said += data
            command.stderr.drop()
            assert await command.finish() == 0
        return said


@asynccontextmanager
async def running(spec: GuestSpec) -> AsyncIterator[Guest]:
    channel = Channel(None)
    guest = Guest(channel)

    async def run(task_status: trio.TaskStatus[RunningGuest]) -> None:
        whole = replace(spec, ports_user=channel)
        guest.result = await run_guest(whole, Events(console=guest.take), task_status=task_status)
        guest.ended.set()

    with trio.fail_after(SLOW):
        async with trio.open_nursery() as nursery:
            guest.handle = await nursery.start(run)
            yield guest
            guest.handle.kill()


@contextmanager
def served(image: Path, overlay: Path) -> Iterator[GuestSpec]:
    """Serve an image with an overlay to guests; give their spec."""
    with tempfile.TemporaryDirectory(prefix="q-") as folder:
        path = Path(folder) / "vda"
        with bind_unix_listener(path) as listener:
            disk = BlockServerSpec(
                Home(Path(folder) / "home"),
                inspect_file(image),
                overlay,
                nbd=listener,
                for_guest=True,
            )
            with BlockServerProcess(disk):
                yield GuestSpec(
                    path,
                    memory=MEMORY,
                    network="user",
                    initramfs=partial(build_initramfs, network=USER),
                    append="quiet",
                    console=Path(os.devnull),
                    vm="qemu",
                    cpu=None,
                )


@dataclass
class State:
    """What was kept of a suspended guest."""

    machine: MachineState
    memory: Path
    device_state: bytes

    def resume(self) -> Resume:
        return Resume(self.machine, self.memory, self.device_state)


def keep(capture: Capture, memory: Path, base: Path | None = None) -> tuple[State, int]:
    """Write a guest's memory to a file, over that of the state that it came from; return the state,
    and how many bytes were written that differ."""
    if base is not None:
        memory.write_bytes(base.read_bytes())
    changed = 0
    with memory.open("w+b" if base is None else "r+b") as file:
        file.truncate(capture.memory.size)
        for offset, length in pieces(capture.memory.extents(), 4096):
            data = capture.memory.read(offset, length)
            if os.pread(file.fileno(), length, offset) != data:
                os.pwrite(file.fileno(), data, offset)
                changed += length
    memory.chmod(0o400)
    return State(capture.machine(disk_length=DISK), memory, capture.device_state), changed


async def suspended(guest: Guest, memory: Path, base: Path | None = None) -> tuple[State, int]:
    """Suspend a guest, and end it here; as `keep`."""
    async with guest.handle.captured() as capture:
        kept = keep(capture, memory, base)
        capture.end()
    await guest.ended.wait()
    assert guest.result is not None
    assert (guest.result.reason, guest.result.exit_code) == ("suspended", 0)
    return kept


REPLIES = "64 bytes from 10.0.2.2"
LOOP = "n=0; while true; do n=$((n+1)); echo $n >/tmp/.c; mv /tmp/.c /tmp/count; sleep 0.1; done"


async def loop_of(guest: Guest) -> int:
    """How far the loop is that runs in the guest."""
    return int(await guest.sh("cat /tmp/count"))


def test_a_guest_goes_on(image: Path, tmp_path: Path) -> None:
    stock_kernel()
    with served(image, tmp_path / "mine.delta") as spec:
        trio.run(go_on, spec, tmp_path)


async def go_on(spec: GuestSpec, tmp_path: Path) -> None:
    async with running(spec) as guest:
        await guest.wait_for(rb"tiny# ")
        await guest.sh("mount -t tmpfs none /tmp; head -c 3000000 /dev/urandom >/tmp/noise")
        await guest.sh("cat /tmp/noise >/root/noise; sync")
        digest = await guest.sh("md5sum </tmp/noise")
        await guest.sh(f"({LOOP}) & true")
        assert REPLIES in await guest.sh("ping -c 1 10.0.2.2")
        assert await guest.execute("cat", "/etc/passwd")
        # An error while it is stopped, and it goes on.
        with pytest.raises(ZeroDivisionError):
            async with guest.handle.captured():
                raise ZeroDivisionError
        count = await loop_of(guest)
        first, _ = await suspended(guest, tmp_path / "first")
    async with running(replace(spec, resume=first.resume())) as guest:
        assert await guest.sh("md5sum </tmp/noise") == digest
        assert await guest.sh("echo 3 >/proc/sys/vm/drop_caches; md5sum </root/noise") == digest
        assert await loop_of(guest) >= count
        assert REPLIES in await guest.sh("ping -c 1 10.0.2.2")
        assert "due to virtual machine fork" in await guest.sh("dmesg")  # it was reseeded
        assert await guest.execute("cat", "/etc/passwd")
        count = await loop_of(guest)
        second, changed = await suspended(guest, tmp_path / "second", first.memory)
        assert changed < MEMORY / 4
    # Its card leads nowhere now.
    async with running(replace(spec, resume=second.resume(), network="none")) as guest:
        assert await guest.sh("md5sum </tmp/noise") == digest
        assert REPLIES not in await guest.sh("ping -c 1 -W 1 10.0.2.2")
        assert await loop_of(guest) >= count
        assert await guest.execute("cat", "/etc/passwd")
