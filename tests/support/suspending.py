"""Guests in QEMU that a test suspends and resumes: a driver without commands and without a node."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from p2pcloop.formats.machine_state import MachineState
from p2pcloop.making.local import inspect_file
from p2pcloop.store.home import Home
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.block.memory_file import open_memory_file
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import BlockServerSpec, MemoryPart
from p2pcloopd.guest.channel.channel import Channel
from p2pcloopd.guest.events import Events
from p2pcloopd.guest.lifecycle import run_guest
from p2pcloopd.guest.machine.capture import Capture
from p2pcloopd.guest.machine.qemu_memory import pieces
from p2pcloopd.guest.machine.resume import Resume
from p2pcloopd.guest.running import RunningGuest
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system.addresses import USER
from p2pcloopd.guest.system.initramfs import build_initramfs
from p2pcloopd.unix_listener import bind_unix_listener
from tests.support.typed_guest import TypedGuest
from tests.support.waiting import BOUND, wait_until

SLOW = 3 * BOUND
"""Seconds for a boot by TCG."""

MEMORY = 128 << 20
PROMPT = rb"tiny# "


@dataclass(frozen=True)
class State:
    """What was kept of a suspended guest."""

    machine: MachineState
    memory: Path
    device_state: bytes

    def resume(self) -> Resume:
        async def tell() -> bytes:
            return self.device_state

        return Resume(self.machine, self.memory, tell)


class Guest(TypedGuest):
    """A running guest of the tiny image, with an agent."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self.channel = channel
        self.ended = trio.Event()

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

    async def suspend(self, memory: Path, base: Path | None = None) -> tuple[State, int]:
        """Suspend it, and end it here; as `keep`."""
        async with self.handle.captured() as capture:
            kept = keep(capture, memory, base)
            capture.end()
        await self.ended.wait()
        assert self.result is not None
        assert (self.result.reason, self.result.exit_code) == ("suspended", 0)
        return kept


def keep(capture: Capture, memory: Path, base: Path | None = None) -> tuple[State, int]:
    """Write a guest's memory to a file, over that of the state that it came from; return the state,
    and how many bytes were written that differ."""
    if base is None:
        memory.touch()
    else:
        shutil.copyfile(base, memory)
    changed = 0
    with memory.open("r+b") as file:
        file.truncate(capture.memory.size)
        for offset, length in pieces(capture.memory.extents(), 4096):
            data = capture.memory.read(offset, length)
            if os.pread(file.fileno(), length, offset) != data:
                os.pwrite(file.fileno(), data, offset)
                changed += length
    # Nobody may change it: others begin with it, too.
    memory.chmod(0o400)
    return State(capture.machine(disk_length=1), memory, capture.device_state), changed


@asynccontextmanager
async def running(spec: GuestSpec) -> AsyncIterator[Guest]:
    """Run a guest; it is killed at the end."""
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


@dataclass(frozen=True)
class Killable:
    """A block server that has a successor when it is killed.

    Attributes:
        block: the process that forks block servers.
    """

    block: BlockServerProcess

    def kill(self) -> None:
        """Kill what serves, and return when another process does."""
        before = self._workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self._workers() - before)

    def _workers(self) -> set[int]:
        parent = self.block._pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return {int(pid) for pid in children}


@dataclass(frozen=True)
class Served(Killable):
    """An image that is served to guests, with an overlay.

    Attributes:
        spec: of a guest that has it.
    """

    spec: GuestSpec


@dataclass(frozen=True)
class Shown(Killable):
    """The memory of a state, page by page.

    Attributes:
        file: its descriptor.
    """

    file: int


@contextmanager
def shown(memory: Path) -> Iterator[Shown]:
    """Show a state's memory to a guest by a block server, outside of trio."""
    with tempfile.TemporaryDirectory(prefix="m-") as name:
        folder = Path(name)
        size = memory.stat().st_size
        device = folder / "device"
        with memory.open("rb") as source, device.open("wb") as target:
            target.write(bytes(BLOCK_SIZE))  # a disk before it
            shutil.copyfileobj(source, target, 1 << 20)
        with (
            open_memory_file(folder, size, everyone=os.geteuid() == 0) as file,
            bind_unix_listener(folder / "disk") as listener,
        ):
            spec = BlockServerSpec(
                Home.at(folder / "home"),
                inspect_file(device, raw=True),
                nbd=listener,
                for_guest=True,
                memory=MemoryPart(BLOCK_SIZE, size, file),
            )
            with BlockServerProcess(spec, successors=True) as block:
                yield Shown(block, file.file)


@contextmanager
def served(image: Path, overlay: Path) -> Iterator[Served]:
    """Serve an image to guests in QEMU, outside of trio."""
    with tempfile.TemporaryDirectory(prefix="q-") as folder:
        path = Path(folder) / "vda"
        home = Home.at(Path(folder) / "home")
        with bind_unix_listener(path) as listener:
            disk = BlockServerSpec(home, inspect_file(image), overlay, nbd=listener, for_guest=True)
            with BlockServerProcess(disk, successors=True) as block:
                spec = GuestSpec(
                    path,
                    memory=MEMORY,
                    network="user",
                    initramfs=partial(build_initramfs, network=USER),
                    append="quiet",
                    console=Path(os.devnull),
                    vm="qemu",
                    cpu=None,
                )
                yield Served(block, spec)
