"""Limits how many requests of NBD connections wait at a time, and the memory they take."""

from __future__ import annotations

from typing import Final

import trio

MAX_WAITING: Final = 256
"""Requests of one connection."""

MAX_WAITING_PAYLOAD: Final = 64 << 20
"""Bytes of one connection."""

MAX_WAITING_OF_ALL: Final = 256 << 20
"""Bytes of all connections of a server; beyond that each has one request that waits."""


class Budget:
    """The memory of all requests that wait at a server."""

    def __init__(self, size: int = MAX_WAITING_OF_ALL) -> None:
        self._size = size
        self._used = 0
        self._parked = trio.lowlevel.ParkingLot()

    def has_room(self, payload: int) -> bool:
        return self._used + payload <= self._size

    async def changed(self) -> None:
        """Return when a request has been answered."""
        await self._parked.park()

    def add(self, payload: int) -> None:
        self._used += payload

    def remove(self, payload: int) -> None:
        self._used -= payload
        self._parked.unpark_all()


class Waiting:
    """Counts the requests of one connection that wait in tasks, and the memory they hold."""

    def __init__(self, budget: Budget | None = None) -> None:
        self._budget = budget or Budget()
        self._requests = 0
        self._payload = 0

    def has_room(self, payload: int) -> bool:
        """Whether one more may wait. One may in any case: else a server that is full of slow
        requests would stand still for all others."""
        if not self._requests:
            return True
        own = self._requests < MAX_WAITING and self._payload + payload <= MAX_WAITING_PAYLOAD
        return own and self._budget.has_room(payload)

    async def room(self, payload: int) -> None:
        """Return when there is room for one more."""
        while not self.has_room(payload):
            await self._budget.changed()

    async def nothing(self) -> None:
        """Return when none waits."""
        while self._requests:
            await self._budget.changed()

    def add(self, payload: int) -> None:
        self._requests += 1
        self._payload += payload
        self._budget.add(payload)

    def remove(self, payload: int) -> None:
        self._requests -= 1
        self._payload -= payload
        self._budget.remove(payload)
