"""What goes on beside an operation: telling the client how far it is, and for whom it waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.node.control_server import Call
from p2pcloopd.tasks import run_while

Result = TypeVar("Result")

REPORT_SECONDS = 1
"""Between two reports of how far an operation is."""

SLOW_SECONDS = 2
"""A reader who waits so long is told how fast something comes."""


async def report_if_waiting(
    torrent: Torrent, call: Call, after: float, work: Callable[[], Awaitable[Result]]
) -> Result:
    """Do `work`; once nothing has come for `after` seconds, tell who was tried.

    Told again every three times as long. Returns or raises what `work` does.
    """
    return await run_while(partial(_report_stalls, torrent, call, after), work)


async def report_rate(
    torrent: Torrent, call: Call, after: float, work: Callable[[], Awaitable[Result]]
) -> Result:
    """As `report_if_waiting`; where it takes long, tell how fast something comes, and from whom."""

    async def watch() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report_stalls, torrent, call, after)
            await _report_pace(torrent, call)

    return await run_while(watch, work)


async def _report_stalls(torrent: Torrent, call: Call, after: float) -> None:
    begun = trio.current_time()
    pause = after
    while True:
        await trio.sleep(pause)
        if torrent.peers.stalled() < after:
            continue
        tried = torrent.peers.tried()
        await call.emit(
            "waiting",
            connected=any(peer.connected for peer in torrent.traffic().peers),
            peers=[peer.address for peer in tried],
            tried=[*map(str, tried), *torrent.servers.faults()],
            seconds=int(trio.current_time() - begun),
        )
        pause = 3 * after


async def _report_pace(torrent: Torrent, call: Call) -> None:
    while True:
        await trio.sleep(SLOW_SECONDS)
        traffic = torrent.traffic()
        if traffic.down_rate:
            giving = [peer.address for peer in traffic.peers if peer.down_rate]
            giving += torrent.peers.http_rates()
            await call.emit("slow", rate=traffic.down_rate, peers=giving)
