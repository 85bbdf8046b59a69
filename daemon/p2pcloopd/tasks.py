"""Helpers for trio: tasks side by side, repeating events, time limits."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

import trio

from p2pcloop.errors import P2pcloopError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pulse:
    """An event that is set each time that something changes."""

    def __init__(self) -> None:
        self._next = trio.Event()

    @property
    def next(self) -> trio.Event:
        """Set when something changes from now on."""
        return self._next

    def notify(self) -> None:
        """Wake every task that waits."""
        self._next.set()
        self._next = trio.Event()

    async def wait(self) -> None:
        """Return when something changed."""
        await self._next.wait()


class Watch(Generic[Item]):
    """Looks at each item of what is under way when its time has come: one task for all of it.

    Most reads end long before anything is to be said of them. A nursery with a task and a timer for
    each cost as much processor time as the read's request to a server.
    """

    def __init__(self, look: Callable[[Item], float]) -> None:
        """`look` tells in how many seconds the item is to be looked at again."""
        self._look = look
        self._due: dict[Item, float] = {}
        self._wakes_at = math.inf
        self._sooner = trio.Event()

    def add(self, item: Item, seconds: float) -> None:
        """Look at an item in so many seconds, unless it is removed before."""
        due = self._due[item] = trio.current_time() + seconds
        if due < self._wakes_at:
            self._wakes_at = due
            self._sooner.set()

    def remove(self, item: Item) -> None:
        """Look at an item no more."""
        self._due.pop(item, None)

    async def run(self) -> None:
        """Look at what is due, for ever."""
        while True:
            self._sooner = trio.Event()
            self._wakes_at = min(self._due.values(), default=math.inf)
            with trio.move_on_at(self._wakes_at):
                await self._sooner.wait()
            now = trio.current_time()
            for item in [item for item, due in self._due.items() if due <= now]:
                again = self._look(item)
                if item in self._due:
                    self._due[item] = now + again


async def race(event: trio.Event, work: Callable[[], Awaitable[Result]]) -> Result | None:
    """What `work` returns; None, and it is cancelled, where the event is set first."""
    result: Result | None = None
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop)
        result = await work()
        nursery.cancel_scope.cancel()
    return result


async def run_while(
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


async def first_success(
    items: Iterable[Item], ask: Callable[[Item], Awaitable[Result]], stagger: float
) -> Result | None:
    """The first answer of several that may be asked; None where all fail.

    The next one is asked when one fails, or does not answer for `stagger` seconds.
    """
    found: list[Result] = []

    async def run(item: Item, failed: trio.Event) -> None:
        try:
            found.append(await ask(item))
        except P2pcloopError:
            failed.set()
        else:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for item in items:
            failed = trio.Event()
            nursery.start_soon(run, item, failed)
            with trio.move_on_after(stagger):
                await failed.wait()
    return found[0] if found else None
