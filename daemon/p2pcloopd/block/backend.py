"""Both front ends serve a backend: a device, and a supplier of the ranges that it lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from p2pcloop.image.api import BlockDevice, Missing


class Backend(Protocol):
    """A device together with the way to fill it.

    The front ends call the device inline; only on `Missing` do they start a task that awaits
    `complete` (or `supply` themselves), so that whatever is here is answered at once.
    """

    @property
    def device(self) -> BlockDevice:
        """The device that is served."""

    async def supply(self, missing: Missing) -> None:
        """Return when the ranges are here: the same call on the device can then go on.

        Waits as long as it takes: while p2pcloopd is down or no peer answers, nothing fails.

        Raises:
            P2pcloopError: the bytes can never be had (the publisher's own data is inconsistent).
        """

    async def flush(self) -> None:
        """Return when everything written before the call is durable (`SharedFlush.flush`)."""


async def complete(backend: Backend, call: Callable[[], None], missing: Missing) -> None:
    """Bring what `call` lacked and call again, until it goes through.

    Raises:
        P2pcloopError: as `Backend.supply` and the device's methods do.
    """
    while True:
        await backend.supply(missing)
        try:
            call()
        except Missing as more:
            # Its traceback leads back to this frame, which would keep it: a circle.
            missing = more.with_traceback(None)
        else:
            return
