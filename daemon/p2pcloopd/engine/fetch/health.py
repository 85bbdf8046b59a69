"""How a source is doing: whether it cools down after a failure, and how fast it sends."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

Result = TypeVar("Result")


class Breaker:
    """Says whether a source may be asked: not for a while after it failed.

    Times are in seconds of trio's clock.
    """

    def __init__(self, cooldown: float) -> None:
        self.ready_at = -math.inf
        self._cooldown = cooldown

    def trip(self, now: float) -> None:
        """Note a failure."""
        self.ready_at = now + self._cooldown

    def closed(self, now: float) -> bool:
        """Whether the source may be asked."""
        return now >= self.ready_at


class Rate:
    """Bytes a second at which something arrives, over `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.value = 0.0
        self._bytes = 0
        self._since = 0.0

    def add(self, size: int, now: float) -> None:
        """Note that bytes arrived."""
        self._bytes += size
        if now - self._since >= self._seconds:
            self.value = self._bytes / (now - self._since)
            self._bytes, self._since = 0, now


async def while_heard(
    heard: Callable[[], int], seconds: float, work: Callable[[], Awaitable[Result]]
) -> Result | None:
    """What `work` returns; None, and it is cancelled, once nothing at all arrives for a while.

    Args:
        heard: a number that grows while something arrives, for this work or other.
    """

    async def give_up_in_silence() -> None:
        before = -1
        while before != (before := heard()):  # noqa: ASYNC110  a pause is what is meant
            await trio.sleep(seconds)
        nursery.cancel_scope.cancel()

    result: Result | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up_in_silence)
        result = await work()
        nursery.cancel_scope.cancel()
    return result
