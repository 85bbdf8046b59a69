"""What goes on beside an operation: telling the client how far it is, and for whom it waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.node.control_server import Call

Result = TypeVar("Result")

REPORT_SECONDS = 1
"""Between two reports of how far an operation is."""


async def tell_if_waiting(
    torrent: Torrent, call: Call, after: float, work: Callable[[], Awaitable[Result]]
) -> Result:
    """Do `work`; once nothing has come for `after` seconds, tell who was tried.

    Told again every three times as long. Returns or raises what `work` does.
    """
    begun = trio.current_time()

    async def tell() -> None:
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
                tried=[str(peer) for peer in tried],
                seconds=int(trio.current_time() - begun),
            )
            pause = 3 * after

    return await beside(tell, work)


async def beside(
    watcher: Callable[[], Awaitable[None]], work: Callable[[], Awaitable[Result]]
) -> Result:
    """Run `watcher` for as long as `work` takes; return or raise what `work` does, unwrapped."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher)
        try:
            result = await work()
        except Exception as err:
            failure = err
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
