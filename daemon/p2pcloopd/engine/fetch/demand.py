"""Whether readers wait, for whichever torrent: backfill heeds all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from p2pcloopd.engine.fetch.tuning import TUNING, Tuning


class Demand:
    """The readers of all torrents of a session.

    Attributes:
        completing: held by each torrent of which pieces are completed.
        some: set while a reader waits; replaced when none does any more.
    """

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self.completing = trio.Semaphore(tuning.idle_concurrency)
        self._waiting = 0
        self._waited_at = self._read_at = -math.inf
        self.some = trio.Event()
        self._none = trio.Event()
        self._none.set()

    @property
    def busy(self) -> bool:
        """Whether a reader waits."""
        return self._waiting > 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Say that a reader waits, while the context lasts."""
        if not self._waiting:
            self._none = trio.Event()
            self.some.set()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._waited_at = trio.current_time()
            if not self._waiting:
                self._none.set()
                self.some = trio.Event()

    def record_read(self) -> None:
        """Note that a client reads, or is about to, whether it must wait or not."""
        self._read_at = trio.current_time()

    async def idle(self, seconds: float, since: float) -> None:
        """Wait until nothing was read for so long, counted from `since` at the earliest."""
        while True:
            await self._none.wait()
            idle_at = max(since, self._read_at, self._waited_at) + seconds
            if trio.current_time() >= idle_at:
                return
            await trio.sleep_until(idle_at)

    async def quiet(self, seconds: float, since: float) -> None:
        """Wait until no reader has waited for so long, counted from `since` at the earliest."""
        while True:
            await self._none.wait()
            quiet_at = max(since, self._waited_at) + seconds
            if trio.current_time() >= quiet_at:
                return
            await trio.sleep_until(quiet_at)
