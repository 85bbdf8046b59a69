"""A dispatcher as a source: a seeder that gives each piece to one client of a crowd at a time.

Each client asks it for any of what is expected and no other client has, in the order in which it is
expected, and is given what no other client was given. The rest comes from the other clients. So a
piece crosses the seeder's uplink once, the next that a guest needs first, and a fast client gets
more of them (docs/scheduling.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.mirror import MAX_CANDIDATES
from p2pcloopd.engine.fetch.health import Breaker
from p2pcloopd.engine.fetch.range_requests import RangeRequests
from p2pcloopd.engine.fetch.store import Store
from p2pcloopd.engine.fetch.tuning import Tuning
from p2pcloopd.tasks import Pulse


class Dispatch:
    """The requests that one torrent has at a dispatcher.

    Attributes:
        hosts: its addresses; empty until it gave a piece.
    """

    def __init__(
        self,
        ranges: RangeRequests,
        store: Store,
        give: Callable[[int, bytes], bool],
        tuning: Tuning,
    ) -> None:
        self.hosts: frozenset[str] = frozenset()
        self._breaker = Breaker(tuning.dispatch_cooldown)
        self._ranges = ranges
        self._store = store
        self._give = give
        self._tuning = tuning
        self._wanted: Sequence[int] = ()
        self._at_once = 0
        self._fresh = Pulse()

    def ready(self, now: float) -> bool:
        """Whether a dispatcher can be asked, as far as is known."""
        return self._ranges.servers.dispatches and self._breaker.closed(now)

    @property
    def busy(self) -> bool:
        """Whether something is to be asked for."""
        return bool(self._wanted)

    def want(self, pieces: Sequence[int], clients: int) -> None:
        """Ask for these from now on, and for nothing else; the first is wanted most.

        Args:
            clients: how many share the dispatcher.
        """
        fresh = not set(pieces).issubset(self._wanted)
        self._wanted = pieces
        self._at_once = max(1, self._tuning.dispatch_concurrency // clients)
        if fresh:
            self._fresh.notify()

    def leave_alone(self) -> None:
        """Ask for nothing for a while: what is dispatched does not arrive."""
        self._breaker.trip(trio.current_time())
        self._wanted = ()
        self.hosts = frozenset()
        self._store.changed.notify()

    async def run(self) -> None:
        """Ask for what is wanted, for ever."""
        async with trio.open_nursery() as nursery:
            for number in range(self._tuning.dispatch_per_client):
                nursery.start_soon(self._work, number)

    async def _work(self, number: int) -> None:
        while True:
            wanted = self._wanted if self._store.running else ()
            left = [piece for piece in wanted if not self._store.is_coming(piece)]
            if not left or number >= self._at_once:
                await self._fresh.wait()
                continue
            size = self._store.stored.layout.piece_length
            try:
                given = await self._ranges.servers.dispatch(left[:MAX_CANDIDATES], size)
            except P2pcloopError:
                self.leave_alone()
                continue
            if given is None:
                with trio.move_on_after(self._tuning.dispatch_retry):
                    await self._fresh.wait()
                continue
            layout = self._store.stored.layout
            if given.piece < layout.pieces:
                self._ranges.count(given.piece * layout.piece_length, given.came)
                if self._give(given.piece, given.came.data):
                    self.hosts = given.hosts
                    continue
            given.came.refuse()
            self.leave_alone()
