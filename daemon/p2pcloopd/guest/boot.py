"""A guest and its block server, from the start of both to the end of both."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from p2pcloop.errors import GuestError, P2pcloopError
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import BlockServerSpec
from p2pcloopd.entry import plain_errors, run
from p2pcloopd.guest.console import is_our_terminal
from p2pcloopd.guest.escape import BRIEF
from p2pcloopd.guest.report import Outcome
from p2pcloopd.guest.spec import GuestResult, GuestSpec
from p2pcloopd.guest.uml import run_guest
from p2pcloopd.unix_listener import bind_unix_listener

_END_SECONDS = 10


def report_keys(overlay: Path | None) -> None:
    """Tell a user at a terminal about the escape key, and about changes that will be lost."""
    if is_our_terminal(sys.stdin.fileno()):
        told = [BRIEF, *(["no overlay: changes last for this boot"] if overlay is None else [])]
        print(*(f"p2pcloop: {line}" for line in told), sep="\n", file=sys.stderr, flush=True)


class Live(Protocol):
    """Runs a guest to its end, as `run_guest` does."""

    async def __call__(
        self, spec: GuestSpec, *, on_boot: Callable[[], None] | None = None
    ) -> GuestResult: ...


def boot(spec: GuestSpec, disk: BlockServerSpec, outcome: Outcome, live: Live = run_guest) -> None:
    """Boot a guest and wait for its end; an error is left in `outcome`."""
    try:
        with serve_disks(disk, spec.disks) as block:
            run(partial(_run, spec, block, outcome, live))
    except P2pcloopError as err:
        outcome.error = err


def serve_disks(disk: BlockServerSpec, sockets: Sequence[Path]) -> BlockServerProcess:
    """Fork the process that serves an image, and its files overlay if it has one, at sockets."""
    with ExitStack() as stack:
        first, *more = [stack.enter_context(bind_unix_listener(path)) for path in sockets]
        disk = replace(disk, vhost_user=first)
        if disk.files is not None:
            disk = replace(disk, files=replace(disk.files, vhost_user=more[0]))
        return BlockServerProcess(disk)


async def _run(spec: GuestSpec, block: BlockServerProcess, outcome: Outcome, live: Live) -> None:
    await block.wait_ready()
    outcome.begun = time.monotonic()
    stuck = trio.CancelScope()

    def on_disk(attached: bool) -> None:
        # A guest lets go of its disk just before it ends; one that goes on without a disk spins.
        stuck.deadline = math.inf if attached else trio.current_time() + _END_SECONDS

    async def wait_for_block_server() -> None:
        outcome.block = await block.finish(on_disk)

    async with trio.open_nursery() as serving:
        serving.start_soon(wait_for_block_server)
        with stuck:
            # Even a guest that cannot boot has read something, and the report tells it.
            try:
                with plain_errors():
                    outcome.guest = await live(spec, on_boot=partial(on_disk, attached=True))
            except P2pcloopError as err:
                outcome.error = err
        block.stop()
    if outcome.guest is None and outcome.error is None:
        raise GuestError("the guest let go of its disk and did not end; it was killed")


def run_one(spec: GuestSpec, disk: BlockServerSpec, outcome: Outcome) -> None:
    """Run the one command that the guest's first root has; otherwise as `boot`."""
    from p2pcloopd.guest.execution import ports_path, run_command  # noqa: PLC0415  not for `boot`

    path = ports_path(spec)
    # It is bound before the block server is forked, and belongs to this process.
    with bind_unix_listener(path) as listener:
        listener.setblocking(False)
        live = partial(run_command, listener)
        boot(replace(spec, ports_socket=path), disk, outcome, live)


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A folder for sockets that only this user can reach; it goes at the end."""
    folder = Path(tempfile.mkdtemp(prefix="p2pcloop-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
