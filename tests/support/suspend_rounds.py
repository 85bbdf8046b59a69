"""Rounds of suspend and resume, with something that goes wrong in most of them.

In each round a guest goes on from its last state, everything in it is checked, it writes to its
memory and to its disk, and is suspended again; or it is killed before that, and the last state is
what the next round goes on from. A state is the memory, the devices and a copy of the overlay.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import trio

from tests.support.suspending import PROMPT, Guest, Served, Shown, State, running, served, shown

Event = Literal[
    "none",
    "kill block server",
    "kill memory server",
    "kill QEMU",
    "kill QEMU when stopped",
    "go on",
]
EVENTS: tuple[Event, ...] = (
    "none", "kill block server", "kill memory server", "kill QEMU", "kill QEMU when stopped",
    "go on",
)  # fmt: skip

COUNTING = (
    "n=0; while true; do n=$((n+1)); echo $n >/tmp/.c; mv /tmp/.c /tmp/count; sleep 0.1; done"
)
"""What a guest of a round runs: a file tells how far it is."""

NOISE_SIZE = 1 << 20
"""Bytes that it writes to its memory, and to its disk."""


@dataclass(frozen=True)
class Kept:
    """A state, and what must be in it.

    Attributes:
        state: memory and devices.
        overlay: the copy of the overlay that belongs to it.
        digests: what md5sum says of /tmp/noise and /root/noise.
        count: how far a loop was that runs in the guest.
    """

    state: State
    overlay: Path
    digests: str
    count: int


@dataclass(frozen=True)
class Round:
    """How a round went.

    Attributes:
        event: what went wrong.
        kept: the state to go on from.
        pause: seconds from the stop to all of the state in a file; None if it was cut off.
        changed: bytes of memory that differ from the state before.
    """

    event: Event
    kept: Kept
    pause: float | None = None
    changed: int = 0


def run_rounds(image: Path, folder: Path, kept: Kept, events: Iterable[Event]) -> Iterator[Round]:
    """Run a round for each event; an assertion fails where anything is lost or wrong.

    Args:
        image: what the guest was booted from; it is only read.
        folder: gets the states; needs some times the guest's memory.
        kept: what the first round goes on from.
    """
    overlay = folder / "working.delta"
    for number, event in enumerate(events, 1):
        shutil.copyfile(kept.overlay, overlay)
        place = folder / str(number)
        with shown(kept.state.memory) as memory, served(image, overlay) as disk:
            done = trio.run(_round, _Servers(disk, memory), place, overlay, kept, event)
        if done.kept is not kept:
            for path in (kept.overlay, kept.state.memory):
                path.unlink()
        kept = done.kept
        yield done


def begin(image: Path, folder: Path) -> Kept:
    """Boot a guest, and suspend it."""
    overlay = folder / "first.delta"
    with served(image, overlay) as disk:
        return trio.run(_begin, disk, folder / "0", overlay)


async def _begin(disk: Served, place: Path, overlay: Path) -> Kept:
    async with running(disk.spec) as guest:
        await start_work(guest)
        digests = await write(guest)
        return (await suspend(guest, place, overlay, digests))[0]


async def start_work(guest: Guest) -> None:
    """Have a guest count, once it is up."""
    await guest.wait_for(PROMPT)
    await guest.sh(f"mount -t tmpfs none /tmp; ({COUNTING}) & true")


@dataclass(frozen=True)
class _Servers:
    """What a guest of a round has its disk and its memory from."""

    disk: Served
    memory: Shown

    def kill(self, event: Event) -> None:
        """Kill that of which `event` tells."""
        (self.disk if event == "kill block server" else self.memory).kill()


async def _round(servers: _Servers, place: Path, overlay: Path, kept: Kept, event: Event) -> Round:
    resume = replace(kept.state.resume(), memory=Path(f"/proc/self/fd/{servers.memory.file}"))
    async with running(replace(servers.disk.spec, resume=resume)) as guest:
        await guest.sh("echo 3 >/proc/sys/vm/drop_caches")
        assert await digests_of(guest) == kept.digests
        assert await count_of(guest) >= kept.count
        async with trio.open_nursery() as nursery:
            if event in ("kill block server", "kill memory server"):
                nursery.start_soon(trio.to_thread.run_sync, servers.kill, event)
            digests = await write(guest)
            if event == "kill QEMU":
                return Round(event, kept)
        await guest.sh("echo 3 >/proc/sys/vm/drop_caches")
        assert await digests_of(guest) == digests
        if event == "kill QEMU when stopped":
            async with guest.handle.captured():
                guest.handle.kill()
            return Round(event, kept)
        if event == "go on":
            count = await count_of(guest)
            async with guest.handle.captured():
                pass
            assert await count_of(guest) >= count
        begun = time.monotonic()
        made, changed = await suspend(guest, place, overlay, digests, kept)
        return Round(event, made, time.monotonic() - begun, changed)


async def suspend(
    guest: Guest, place: Path, overlay: Path, digests: str, base: Kept | None = None
) -> tuple[Kept, int]:
    """Suspend a guest; return what was kept, and the bytes of memory that were changed."""
    count = await count_of(guest)
    before = None if base is None else base.state.memory
    state, changed = await guest.suspend(place.with_suffix(".memory"), before)
    copy = place.with_suffix(".delta")
    shutil.copyfile(overlay, copy)
    return Kept(state, copy, digests, count), changed


async def write(guest: Guest) -> str:
    """Write to memory and disk; return the digests of it."""
    for place in ("/tmp", "/root"):
        await guest.sh(f"head -c {NOISE_SIZE} /dev/urandom >{place}/noise")
    await guest.sh("sync")
    return await digests_of(guest)


async def digests_of(guest: Guest) -> str:
    """What md5sum says of what it has written."""
    return await guest.sh("md5sum /tmp/noise /root/noise")


async def count_of(guest: Guest) -> int:
    """How far its loop is."""
    return int(await guest.sh("cat /tmp/count"))
