"""Progress events of long operations: which sources are awaited, and how fast bytes come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from p2pcloopd.control_server import Call
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.tasks import Watch

Result = TypeVar("Result")

REPORT_SECONDS = 1
"""Between two reports of how far an operation is."""

SLOW_SECONDS = 2
"""A reader who waits so long is told how fast something comes."""


@dataclass(slots=True, eq=False)
class _Operation:
    """An operation that is under way.

    Attributes:
        begun: when, in trio's time.
        pause: seconds to the next look whether anything came.
        heard: `Servers.heard` at the last look.
        telling: what its client is being told now; None where that is nothing.
    """

    torrent: Torrent
    call: Call
    begun: float
    pause: float
    heard: int
    telling: trio.CancelScope | None = None


class Reports:
    """Tells clients of their operations, as long as `run` runs."""

    def __init__(self, after: float) -> None:
        """`after`: seconds without data until a client is told who was tried."""
        self.after = after
        self._stalls = Watch(self._look_for_stall)
        self._paces = Watch(self._look_at_pace)
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Tell what there is to tell, for ever."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._stalls.run)
            await self._paces.run()

    async def report_if_waiting(
        self, torrent: Torrent, call: Call, work: Callable[[], Awaitable[Result]]
    ) -> Result:
        """Do `work`; once nothing has come for a while, tell who was tried.

        Told again every three times as long. Returns or raises what `work` does.
        """
        operation = self._begin(torrent, call)
        try:
            return await work()
        finally:
            self._end(operation)

    async def report_rate(
        self, torrent: Torrent, call: Call, work: Callable[[], Awaitable[Result]]
    ) -> Result:
        """As `report_if_waiting`; where it takes long, tell how fast something comes, and from
        whom."""
        operation = self._begin(torrent, call)
        self._paces.add(operation, SLOW_SECONDS)
        try:
            return await work()
        finally:
            self._end(operation)

    def _begin(self, torrent: Torrent, call: Call) -> _Operation:
        now, heard = trio.current_time(), torrent.servers.heard()
        operation = _Operation(torrent, call, now, self.after, heard)
        self._stalls.add(operation, self.after)
        return operation

    def _end(self, operation: _Operation) -> None:
        self._stalls.remove(operation)
        self._paces.remove(operation)
        if operation.telling is not None:
            operation.telling.cancel()

    def _look_for_stall(self, operation: _Operation) -> float:
        torrent = operation.torrent
        if torrent.peers.stalled() < self.after:
            return operation.pause
        before, operation.heard = operation.heard, torrent.servers.heard()
        tried = torrent.peers.tried()
        self._tell(
            operation,
            "waiting",
            connected=any(peer.connected for peer in torrent.traffic().peers),
            arriving=torrent.servers.asking() and operation.heard != before,
            peers=[peer.address for peer in tried],
            tried=[*map(str, tried), *torrent.servers.faults()],
            seconds=int(trio.current_time() - operation.begun),
        )
        operation.pause = 3 * self.after
        return operation.pause

    def _look_at_pace(self, operation: _Operation) -> float:
        traffic = operation.torrent.traffic()
        if traffic.down_rate:
            giving = [peer.address for peer in traffic.peers if peer.down_rate]
            giving += operation.torrent.peers.http_rates()
            self._tell(operation, "slow", rate=traffic.down_rate, peers=giving)
        return SLOW_SECONDS

    def _tell(self, operation: _Operation, event: str, **fields: object) -> None:
        """Tell a client, unless it has not taken yet what it was told before."""
        if operation.telling is not None:
            return
        scope = operation.telling = trio.CancelScope()

        async def tell() -> None:
            with scope:
                await operation.call.emit(event, **fields)
            operation.telling = None

        self._nursery.start_soon(tell)
