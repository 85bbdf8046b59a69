"""What a resume waits for before its guest goes on, without the guest: for many on one machine.

Usage: python -m bench.links.held LINK HOME. It finds the state, and has a block server fetch what
the profile names, as `p2pcloop resume` does. It prints how many seconds that took, and ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import trio

from p2pcloop.client.refs import resolve_stored
from p2pcloop.store.home import Home
from p2pcloop.store.temporary_folder import temporary_folder
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.commands.resuming import Resuming
from p2pcloopd.entry import run
from p2pcloopd.guest.disk import disk_of
from p2pcloopd.guest.with_block_server import serve_disks


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit code."""
    link, root = sys.argv[1:] if words is None else words
    begun = time.monotonic()
    home = Home.at(Path(root))
    target = resolve_stored(link, home, why_no_file="it is no state", hint="give a link")
    machine = target.signed.manifest.machine
    assert machine is not None, "a state"
    with target.client, temporary_folder() as folder, ExitStack() as stack:
        disk = disk_of(target, None, home, prefetch=True, fill=-1, resumes=True)
        disk = Resuming(machine, "").with_memory(disk, folder, stack)
        with serve_disks(disk, [folder / "vda"], "qemu") as block:
            run(partial(_wait, block))
            print(f"{time.monotonic() - begun:.3f}", flush=True)
            block.stop()
    return 0


async def _wait(block: BlockServerProcess) -> None:
    """Return when the guest could go on."""
    await block.wait_ready()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(block.finish)
        await block.device_state()
        await block.enough()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    sys.exit(main())
