"""A device as a file that is read from end to end."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from p2pcloop.image.api import BlockDevice, Missing

_WINDOW = 1 << 30
"""Bytes of the device that are searched for zeros at once."""


class DeviceReader(io.RawIOBase):
    """The content of a device as a readable stream.

    `supply` fetches missing ranges and returns; then the same bytes are read again.
    """

    def __init__(self, device: BlockDevice, supply: Callable[[Missing], None]) -> None:
        super().__init__()
        self._device = device
        self._supply = supply
        self._offset = 0
        self._data_until = 0

    def readable(self) -> bool:
        """See `io.RawIOBase.readable`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase.seekable`."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """See `io.RawIOBase.seek`."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._device.size}
        self._offset = start[whence] + offset
        self._data_until = 0
        return self._offset

    def skip_zeros(self) -> int:
        """Skip to the next byte that is not known to be zero; return how many were skipped."""
        start = self._offset
        while self._data_until <= self._offset < self._device.size:
            length = min(_WINDOW, self._device.size - self._offset)
            stop, zeros = next(iter(self._device.extents(self._offset, length)))
            if zeros:
                self._offset += stop
            else:
                self._data_until = self._offset + stop
        return self._offset - start

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # Buffer is 3.12's
        """See `io.RawIOBase.readinto`."""
        view = memoryview(buffer).cast("B")[: self._device.size - self._offset]
        if not view:
            return 0
        while True:
            try:
                self._device.read_into(self._offset, [view])
            except Missing as missing:
                self._supply(missing)
            else:
                self._offset += len(view)
                return len(view)
