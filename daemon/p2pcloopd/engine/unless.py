"""Work that something may make needless."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

Result = TypeVar("Result")


async def unless(event: trio.Event, work: Callable[[], Awaitable[Result]]) -> Result | None:
    """What `work` returns; None, and it is cancelled, where the event comes first."""
    result: Result | None = None
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop)
        result = await work()
        nursery.cancel_scope.cancel()
    return result
