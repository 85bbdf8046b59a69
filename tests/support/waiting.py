"""Waiting for what no event tells: state inside another program or inside a foreign library."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

BOUND = 120.0
"""Seconds after which a wait has failed; what is waited for takes a few, and more on
a busy machine."""

_STEP = 0.01


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until `condition` is true; `what` is told where it never is."""
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, what or condition
        time.sleep(_STEP)


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Like `wait_until`, while other tasks of trio run."""
    deadline = time.monotonic() + BOUND  # a test's clock may be mocked
    while not condition():
        assert time.monotonic() < deadline, what or condition
        await trio.sleep(_STEP)
