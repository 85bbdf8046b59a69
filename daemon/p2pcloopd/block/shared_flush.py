"""Flushes that are asked for at the same time share one: the disk is asked once, not n times."""

from __future__ import annotations

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.image.api import BlockDevice


class SharedFlush:
    """Makes a device durable for any number of tasks, with one flush of the device at a time."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._lock = trio.Lock()
        self._begun = 0
        self._ended = 0
        self._error: P2pcloopError | None = None

    async def flush(self) -> None:
        """Return when everything written before the call is durable.

        Once begun, a flush of the device is not abandoned by cancellation: the disk is never left
        half told.

        Raises:
            StorageError: the flush that covered this call failed. All that shared it are told: the
                kernel tells of a failed write once only, so that a second try would lie.
        """
        begun_before = self._begun
        async with self._lock:
            # One that had begun before this call may have missed what was written meanwhile.
            if self._ended <= begun_before:
                self._begun += 1
                number = self._begun
                self._error = None
                try:
                    await trio.to_thread.run_sync(self._device.prepare_flush())
                except P2pcloopError as err:
                    self._error = err
                self._ended = number
            if self._error is not None:
                raise self._error
