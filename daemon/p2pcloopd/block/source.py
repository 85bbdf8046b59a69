"""Backends of the block server: of a local image, and of one that arrives through p2pcloopd."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from p2pcloop.formats.overlay import Overlay
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloopd.block.prefetch import Prefetch
from p2pcloopd.block.shared_flush import SharedFlush
from p2pcloopd.block.supplier import Supplier


class LocalBackend:
    """Serves a device whose image is a local file, so that no byte is ever missing."""

    def __init__(self, device: ImageDevice) -> None:
        self.device = device
        self._shared_flush = SharedFlush(device)

    def with_overlay(self, overlay: Overlay) -> LocalBackend:
        """The same image with changes of its own."""
        return LocalBackend(self.device.with_overlay(overlay))

    async def supply(self, missing: Missing) -> None:
        """See `Backend.supply`; never called."""
        raise AssertionError(f"a local image cannot lack anything, yet: {missing}")

    async def flush(self) -> None:
        """See `Backend.flush`."""
        await self._shared_flush.flush()


class StoredBackend:
    """Serves a device whose image arrives from peers.

    Attributes:
        supplier: fetches missing bytes.
        prefetch: fetches bytes before they are read.
        report_booted: called at the end; ends the lease and reports the used pieces.
        whole: whether all of the image is here: then nothing is prefetched.
    """

    def __init__(
        self,
        device: ImageDevice,
        supplier: Supplier,
        prefetch: Prefetch,
        report_booted: Callable[[], Awaitable[None]],
        *,
        whole: bool,
    ) -> None:
        self.device = device
        self.supplier = supplier
        self.prefetch = prefetch
        self.report_booted = report_booted
        self.whole = whole
        self._shared_flush = SharedFlush(device)

    def with_overlay(self, overlay: Overlay) -> StoredBackend:
        """The same image with changes of its own."""
        device = self.device.with_overlay(overlay)
        whole = self.whole
        return StoredBackend(device, self.supplier, self.prefetch, self.report_booted, whole=whole)

    async def supply(self, missing: Missing) -> None:
        """See `Backend.supply`."""
        await self.supplier.supply(missing)

    async def flush(self) -> None:
        """See `Backend.flush`."""
        await self._shared_flush.flush()
