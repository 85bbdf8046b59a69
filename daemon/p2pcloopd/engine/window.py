"""How much is asked for ahead of a reader: what the link brings in a moment, and no more.

What was asked of a peer comes in that order, and nothing overtakes it: a reader who is kept waiting
for something else waits for the whole window first. A link is kept busy by as much as is on its
way: its rate times its round trip. docs/scheduling.md has how the constants were chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

SECONDS = 0.25
"""A window is what comes in that time: longer than round trips are."""

MIN_BYTES = 128 << 10
MAX_BYTES = 16 << 20


class Window:
    """Bytes that are on their way ahead of a reader.

    Args:
        rate: tells how many bytes a second come at present.
        busy: tells whether a reader is kept waiting: the window is half as wide then.
    """

    def __init__(self, rate: Callable[[], float], busy: Callable[[], bool]) -> None:
        self._rate = rate
        self._busy = busy
        self._used = 0
        self._freed = trio.Event()

    def limit(self) -> int:
        """How many bytes may be on their way now."""
        limit = min(max(int(self._rate() * SECONDS), MIN_BYTES), MAX_BYTES)
        return limit // 2 if self._busy() else limit

    async def take(self, size: int) -> None:
        """Wait for room; a size larger than all there is gets in alone. One caller at a time."""
        while self._used and self._used + size > self.limit():
            self._freed = trio.Event()
            await self._freed.wait()
        self._used += size

    def give_back(self, size: int) -> None:
        """Say that bytes have come."""
        self._used -= size
        self._freed.set()
