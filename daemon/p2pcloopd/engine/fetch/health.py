"""How a source is doing: whether it cools down after a failure, and how fast it sends."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from p2pcloopd.tasks import Watch

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


@dataclass(slots=True, eq=False)
class _Work:
    """Work that is under way, and what `Silence.heard` said at the last look at it."""

    heard: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Silence:
    """Ends work during which nothing at all arrives for a while, as long as `run` runs."""

    def __init__(self, heard: Callable[[], int], seconds: float) -> None:
        """`heard` tells a number that grows while something arrives, for this work or other."""
        self._heard = heard
        self._seconds = seconds
        self._watch = Watch(self._look)
        self.run = self._watch.run

    async def ends(self, work: Callable[[], Awaitable[Result]]) -> Result | None:
        """What `work` returns; None, and it is cancelled, where there is silence."""
        begun = _Work(self._heard())
        self._watch.add(begun, self._seconds)
        try:
            with begun.scope:
                return await work()
        finally:
            self._watch.remove(begun)
        return None

    def _look(self, work: _Work) -> float:
        before, work.heard = work.heard, self._heard()
        if work.heard == before:
            work.scope.cancel()
        return self._seconds
