"""HTTP servers as the engine sees them (engine/fetch/range_requests.py), made of functions."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

from p2pcloop.errors import NotHereError
from p2pcloopd.engine.fetch.range_requests import Came, Dispatched, NoServers

Ask = Callable[[int, int], Awaitable[bytes | None]]
Dispatch = Callable[[Sequence[int], int], Awaitable[Dispatched | None]]


class RangeServer(NoServers):
    """One server that answers what `ask` does; None where it has nothing."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def ready_at(self) -> float:
        return -math.inf

    async def get(self, offset: int, length: int, *, spread: bool = False) -> Came:  # noqa: ARG002
        data = await self._ask(offset, length)
        if data is None:
            raise NotHereError("the server does not have it")
        return Came(data, "http://fake/", lambda: None)


class Dispatcher(NoServers):
    """A node that dispatches what `dispatch` gives, and has no ranges."""

    dispatches = True

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    async def dispatch(self, pieces: Sequence[int], size: int) -> Dispatched | None:
        return await self._dispatch(pieces, size)
