"""The interface of both front ends: a device, and the means to fetch what the device lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from p2pcloop.image.api import BlockDevice, Missing


class Supplying(Protocol):
    """The way to fetch what a read lacks."""

    async def supply(self, missing: Missing) -> None:
        """See `Backend.supply`."""


class Backend(Protocol):
    """A device together with the way to fill it.

    The front ends call the device inline, so a request is answered at once if its bytes are here.
    Only on `Missing` do they start a task that awaits `complete` or `supply`.
    """

    @property
    def device(self) -> BlockDevice:
        """The device that is served."""

    async def supply(self, missing: Missing) -> None:
        """Return when the ranges are here, so that the same call on the device can succeed.

        There is no limit of time: while p2pcloopd is down or no peer answers, the call waits.

        Raises:
            P2pcloopError: the bytes do not exist (the publisher's own data is inconsistent).
        """

    async def flush(self) -> None:
        """Return when everything written before the call is durable (`SharedFlush.flush`)."""


async def complete(backend: Supplying, call: Callable[[], None], missing: Missing) -> None:
    """Fetch what `call` lacked and call again, until it succeeds.

    Raises:
        P2pcloopError: as `Backend.supply` and the device's methods do.
    """
    while True:
        await backend.supply(missing)
        try:
            call()
        except Missing as more:
            # The error's traceback refers to this frame, which would refer to the error: a cycle.
            missing = more.with_traceback(None)
        else:
            return
