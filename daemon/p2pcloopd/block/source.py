"""Backends of the block server: an image that lies here, or one that arrives from p2pcloopd."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Protocol

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.protocol.waiting import describe_waiting
from p2pcloopd.block.shared_flush import SharedFlush

_log = logging.getLogger(__name__)


class Caller(Protocol):
    """A connection to p2pcloopd that outlives it (`ReconnectingClient`)."""

    async def call(
        self, op: str, on_event: Callable[[str, dict[str, Any]], None] | None = None, **args: object
    ) -> dict[str, Any]:
        """Ask for an operation and wait for its result."""


class LocalBackend:
    """Serves a device whose image lies here whole, so that nothing is ever missing."""

    def __init__(self, device: ImageDevice) -> None:
        self.device = device
        self._shared_flush = SharedFlush(device)

    async def supply(self, missing: Missing) -> None:
        """See `Backend.supply`; never called."""
        raise AssertionError(f"a local image cannot lack anything, yet: {missing}")

    async def flush(self) -> None:
        """See `Backend.flush`."""
        await self._shared_flush.flush()


class Supplier:
    """Brings ranges from p2pcloopd; those that are wanted twice at a time are asked for once.

    Attributes:
        waits: seconds that each range took to come, in the order in which they came.
    """

    def __init__(self, client: Caller, accept: Callable[[ByteRange, bytes], None]) -> None:
        """`accept` is given each range with its bytes, as `StoredImage.accept`."""
        self._client = client
        self._accept = accept
        self._under_way: dict[ByteRange, trio.Event] = {}
        self.waits: list[float] = []

    async def supply(self, missing: Missing) -> None:
        """See `Backend.supply`."""
        errors: list[P2pcloopError] = []

        async def bring(wanted: ByteRange) -> None:
            try:
                await self._bring(wanted)
            except P2pcloopError as err:
                errors.append(err)

        async with trio.open_nursery() as nursery:
            for wanted in missing.ranges:
                nursery.start_soon(bring, wanted)
        if errors:
            raise errors[0]

    async def _bring(self, wanted: ByteRange) -> None:
        if wanted in self._under_way:
            # Whoever waits looks again afterwards, and asks itself if the other one failed.
            await self._under_way[wanted].wait()
            return
        done = self._under_way[wanted] = trio.Event()
        started = time.monotonic()
        try:
            self._accept(wanted, await self._read(wanted))
            self.waits.append(time.monotonic() - started)
        finally:
            del self._under_way[wanted]
            done.set()

    async def _read(self, wanted: ByteRange) -> bytes:
        parts = []
        for part in wanted.parts():
            answer = await self._client.call("read", _log_waiting, **asdict(part))
            parts.append(answer["data"])
        return b"".join(parts)


class StoredBackend:
    """Serves a device whose image arrives from peers.

    Attributes:
        tell_booted: to be called at the end: ends the lease and tells what was used.
    """

    def __init__(
        self, device: ImageDevice, supplier: Supplier, tell_booted: Callable[[], Awaitable[None]]
    ) -> None:
        self.device = device
        self.supplier = supplier
        self.tell_booted = tell_booted
        self._shared_flush = SharedFlush(device)

    async def supply(self, missing: Missing) -> None:
        """See `Backend.supply`."""
        await self.supplier.supply(missing)

    async def flush(self) -> None:
        """See `Backend.flush`."""
        await self._shared_flush.flush()


def _log_waiting(event: str, fields: dict[str, Any]) -> None:
    if event == "waiting":
        _log.warning("the guest waits: %s", describe_waiting(fields))
