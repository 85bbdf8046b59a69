"""Limits how many requests of an NBD connection wait at a time, and the memory they take."""

from __future__ import annotations

from typing import Final

import trio

MAX_WAITING: Final = 256
MAX_WAITING_PAYLOAD: Final = 64 << 20


class Waiting:
    """Counts the requests of one connection that wait in tasks, and the memory they hold."""

    def __init__(self) -> None:
        self._requests = 0
        self._payload = 0
        self._parked = trio.lowlevel.ParkingLot()

    def has_room(self, payload: int) -> bool:
        return self._requests < MAX_WAITING and self._payload + payload <= MAX_WAITING_PAYLOAD

    async def room(self, payload: int) -> None:
        """Return when there is room for one more."""
        while not self.has_room(payload):
            await self._parked.park()

    async def nothing(self) -> None:
        """Return when none waits."""
        while self._requests:
            await self._parked.park()

    def add(self, payload: int) -> None:
        self._requests += 1
        self._payload += payload

    def remove(self, payload: int) -> None:
        self._requests -= 1
        self._payload -= payload
        self._parked.unpark_all()
