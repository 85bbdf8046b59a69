"""Concurrent flush requests share one flush of the device."""

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

        Cancellation does not abandon a flush of the device that has begun.

        Raises:
            StorageError: the flush that covered this call failed. All calls that shared it get the
                error: the kernel reports a failed write only once, so a second try would succeed
                wrongly.
        """
        begun_before = self._begun
        async with self._lock:
            # A flush that began before this call may have missed later writes.
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
