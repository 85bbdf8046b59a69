"""Workers that succeed each other: one that was killed is started anew, by its parent.

That parent does nothing else. It has what its workers inherit, and no threads, so that it can fork
at any time.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable
from typing import Final, NoReturn

_log = logging.getLogger(__name__)

QUICK_SECONDS: Final = 1.0
"""A worker that is killed sooner than that after its start has done little."""

MAX_QUICK: Final = 5
"""So many of these one after the other are the last: whatever kills them goes on."""


def run_successors(work: Callable[[int], NoReturn], is_wanted: Callable[[], bool]) -> int:
    """Run workers, one at a time, until one ends by itself; return its exit code.

    Args:
        work: what a worker does, to its end; it is given how many there were before.
        is_wanted: whether there is still a guest to work for.
    """
    quick = 0
    for number in itertools.count():
        begun = time.monotonic()
        worker = os.fork()
        if not worker:
            work(number)
        _, status = os.waitpid(worker, 0)
        quick = quick + 1 if time.monotonic() - begun < QUICK_SECONDS else 0
        if os.WIFEXITED(status):
            return os.WEXITSTATUS(status)
        if quick == MAX_QUICK or not is_wanted():
            return 1
        _log.warning(
            "the block server was killed (signal %d); another one goes on", os.WTERMSIG(status)
        )
    raise AssertionError("there is always a next worker")
