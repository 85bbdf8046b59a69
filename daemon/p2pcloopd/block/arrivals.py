"""What of a prefetch has arrived: for those who wait to start a guest, or to push its memory."""

from __future__ import annotations

import trio

LEAD_SECONDS = 0.15
"""A resumed guest may go on if the rest of its profile comes within this time. Then it hardly waits
for a page. If it goes on sooner, its reads ask for pages one by one, which takes a round trip of
the line each: over 1.5 MB/s it took 3.3 s to an answer instead of 1.3."""

MEASURE_SECONDS = 0.1
"""How long bytes must have come before their rate tells something."""

STALL_SECONDS = 5.0
"""If nothing comes for so long, the guest may go on: its reads tell the user what is the matter."""


class Arrivals:
    """The ranges of one prefetch: those that a guest waits for, and then more.

    Made, it waits for `expect`; times are trio's.

    Attributes:
        first_ended: no more will come of what the guest waits for.
        ended: nor of anything else.
    """

    def __init__(self) -> None:
        self.first_ended = self.ended = False
        self._left: int | None = None
        self._measured = 0
        self._first: float | None = None
        self._enough = trio.Event()
        self._parked = trio.lowlevel.ParkingLot()

    def expect(self, length: int) -> None:
        """So many bytes that the guest waits for are missing, and asked for."""
        self._left = length
        if not length:
            self._enough.set()
        self._parked.unpark_all()

    def add(self, length: int) -> None:
        """So many of them have come."""
        now = trio.current_time()
        assert self._left is not None, "they were expected"
        self._left -= length
        if self._first is None:
            self._first = now  # what came first has waited for the line, too
        else:
            self._measured += length
        if self._left * (now - self._first) <= LEAD_SECONDS * self._measured and (
            self._left <= 0 or now - self._first >= MEASURE_SECONDS
        ):
            self._enough.set()
        self._parked.unpark_all()

    def add_more(self, _length: int) -> None:
        """Something else has come."""
        self._parked.unpark_all()

    def end_first(self) -> None:
        """All that the guest waits for has come, or no more of it will."""
        self.first_ended = True
        self._enough.set()
        self._parked.unpark_all()

    def end(self) -> None:
        """All has come, or no more will."""
        self.first_ended = self.ended = True
        self._enough.set()
        self._parked.unpark_all()

    async def all(self) -> None:
        """Return when all has come, or no more will."""
        while not self.ended:
            await self.news()

    async def news(self) -> None:
        """Return when more has come, or the prefetch has ended."""
        await self._parked.park()

    async def enough(self) -> None:
        """Return when the guest may go on: see the times above."""
        while not self._enough.is_set():
            with trio.move_on_after(STALL_SECONDS) as stalled:
                await self.news()
            if stalled.cancelled_caught:
                return
