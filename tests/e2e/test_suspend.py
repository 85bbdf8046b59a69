"""Guests in QEMU that are suspended, and go on in another QEMU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pcloopd.guest.machine.qemu_memory import copy_memory, pieces
from tests.support.boot_disks import stock_kernel
from tests.support.suspend_rounds import (
    EVENTS,
    Kept,
    count_of,
    digests_of,
    run_rounds,
    start_work,
    suspend,
    write,
)
from tests.support.suspending import MEMORY, Guest, Served, running, served

pytestmark = pytest.mark.e2e

REPLIES = "64 bytes from 10.0.2.2"


def test_a_guest_goes_on(image: Path, tmp_path: Path) -> None:
    """One boot, since by TCG it takes long: the guest is suspended, resumed and suspended once
    more; and then it has a round for each thing that may go wrong."""
    stock_kernel()
    overlay = tmp_path / "mine.delta"
    with served(image, overlay) as disk:
        kept = trio.run(_suspend_twice, disk, tmp_path, overlay)
    faults = [event for event in EVENTS if event.startswith("kill")]
    rounds = list(run_rounds(image, tmp_path, kept, faults))
    assert [done.event for done in rounds] == faults
    assert [done.pause is None for done in rounds] == ["QEMU" in event for event in faults]


async def _suspend_twice(disk: Served, folder: Path, overlay: Path) -> Kept:
    async with running(disk.spec) as guest:
        await start_work(guest)
        digests = await write(guest)
        await _check_ways_out(guest)
        await _check_that_it_goes_on(guest)
        first, _ = await suspend(guest, folder / "first", overlay, digests)
    spec = replace(disk.spec, resume=first.state.resume())
    async with running(spec) as guest:
        await guest.sh("echo 3 >/proc/sys/vm/drop_caches")
        assert await digests_of(guest) == digests
        assert await count_of(guest) >= first.count
        await _check_ways_out(guest)
        assert "due to virtual machine fork" in await guest.sh("dmesg")  # it was reseeded
        await _check_that_it_goes_on(guest)
        second, changed = await suspend(guest, folder / "second", overlay, digests, first)
    assert 0 < changed < MEMORY / 4
    # The same state for one who gives it no network: its card leads nowhere.
    async with running(replace(spec, resume=second.state.resume(), network="none")) as guest:
        assert REPLIES not in await guest.sh("ping -c 1 -W 1 10.0.2.2")
        assert await digests_of(guest) == digests
        assert await guest.execute("cat", "/etc/passwd")
    return second


async def _check_ways_out(guest: Guest) -> None:
    # A guest that was resumed has no link for its first second.
    assert REPLIES in await guest.sh("until ping -c 1 -W 1 10.0.2.2; do :; done")
    assert await guest.execute("cat", "/etc/passwd")


async def _check_that_it_goes_on(guest: Guest) -> None:
    """A capture that is left ends nothing, however it is left, and what was copied stays."""
    with pytest.raises(ZeroDivisionError):
        async with guest.handle.captured():
            raise ZeroDivisionError
    for milliseconds in (0, 2, 5, 10, 20, 50):
        with trio.move_on_after(milliseconds / 1000) as scope:
            async with guest.handle.captured():
                await trio.sleep_forever()
        assert scope.cancelled_caught
        count = await count_of(guest)
    async with guest.handle.captured() as capture:
        copy = await trio.to_thread.run_sync(copy_memory, capture.memory)
    try:
        assert await count_of(guest) >= count
        assert copy.extents()
        for offset, length in pieces(copy.extents()[-1:]):
            assert len(copy.read(offset, length)) == length
    finally:
        copy.close()
