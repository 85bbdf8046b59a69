"""The processes of a block server that has successors."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from p2pcloopd.block.process import BlockServerProcess
from tests.support.waiting import wait_until


def workers(block: BlockServerProcess) -> list[int]:
    """The children of the process that forks them, the oldest first: of a guest with memory the
    first one pushes."""
    table = Path(f"/proc/{block._pid}/task/{block._pid}/children")
    return [int(pid) for pid in table.read_text().split()]


def worker_of(block: BlockServerProcess) -> int:
    """The process that serves now, waited for if it is just being forked."""
    wanted = 1 if block._memory is None else 2
    found: list[int] = []

    def is_there() -> bool:
        found[:] = workers(block)
        return len(found) >= wanted

    wait_until(is_there)
    return found[-1]


def kill_worker(block: BlockServerProcess) -> None:
    """Kill the process that serves, and return when another one does."""
    worker = worker_of(block)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: worker_of(block) != worker)
