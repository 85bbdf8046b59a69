"""What a delta leads to: an image file, a stored image, or an image with an overlay on top."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import ZERO_CHUNK
from p2pcloop.formats.overlay import Overlay, State
from p2pcloop.image.api import BlockDevice, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.build import Read, check_image_size
from p2pcloop.making.changes import Stretch
from p2pcloop.units import BLOCK_SIZE

_SPAN = 1 << 20
"""Blocks of which an overlay's states are looked at together."""


class FileTarget:
    """An image file; all of it may differ."""

    def __init__(self, read: Read, size: int) -> None:
        """Take what `read` returns of `size` bytes; the device ends in zeros up to a block's end.

        Raises:
            UsageError: the image is empty or larger than 16 TiB.
        """
        self.size = check_image_size(size)
        self._read = read
        self._length = size

    def stretches(self) -> Iterable[Stretch]:
        """See `Target.stretches`."""
        return [(0, self.size // BLOCK_SIZE)]

    def read(self, block: int, count: int) -> bytes:
        """See `Target.read`.

        Raises:
            FormatError: the file became shorter meanwhile.
        """
        offset, length = block * BLOCK_SIZE, count * BLOCK_SIZE
        data = self._read(offset, min(length, self._length - offset))
        if len(data) != min(length, self._length - offset):
            raise FormatError(
                f"the image became shorter than {self._length} bytes while it was read",
                hint="leave it alone while it is read, and try again",
            )
        return data.ljust(length, b"\0")


class DeviceTarget:
    """A device, read on one thread at a time; what is missing is waited for."""

    def __init__(
        self, device: BlockDevice, supply: Callable[[Missing], None], stretches: Iterable[Stretch]
    ) -> None:
        self.size = device.size
        self._device = device
        self._supply = supply
        self._stretches = stretches
        self._lock = threading.Lock()

    def stretches(self) -> Iterable[Stretch]:
        """See `Target.stretches`."""
        return self._stretches

    def read(self, block: int, count: int) -> bytes:
        """See `Target.read`.

        Raises:
            P2pcloopError: something is missing and can never be had.
        """
        data = bytearray(count * BLOCK_SIZE)
        with self._lock:
            while True:
                try:
                    self._device.read_into(block * BLOCK_SIZE, [memoryview(data)])
                except Missing as missing:
                    self._supply(missing)
                else:
                    return bytes(data)


def overlay_target(
    image: MergedImage,
    overlay: Overlay,
    supply: Callable[[Missing], None],
    base: MergedImage | None = None,
) -> DeviceTarget:
    """An image with an overlay on top.

    Args:
        image: what the overlay was made on.
        overlay: open.
        supply: brings here what is missing of `image`.
        base: what it is to be compared with, where that is not `image` but one with more layers
            on the same ones.
    """
    stretches = overlay_stretches(overlay)
    if base is not None:
        stretches = _union(stretches, upper_stretches(base, len(image.layers), image.size))
    return DeviceTarget(ImageDevice(image, overlay), supply, stretches)


def overlay_stretches(overlay: Overlay) -> Iterator[Stretch]:
    """Where an overlay holds something."""
    blocks = overlay.image_size // BLOCK_SIZE
    for at in range(0, blocks, _SPAN):
        for first, count, state in overlay.runs(at, min(_SPAN, blocks - at)):
            if state is not State.ABSENT:
                yield first, count


def upper_stretches(image: MergedImage, layers: int, size: int) -> Iterator[Stretch]:
    """Where the first `size` bytes of an image may read otherwise than its lowest `layers` do."""
    blocks = size // BLOCK_SIZE
    for run in image.map:
        # Zeros of all layers are joined: whose they are is not said.
        if (run.layer >= layers or run.chunk == ZERO_CHUNK) and run.start < blocks:
            yield run.start, min(run.end, blocks) - run.start


def _union(*groups: Iterable[Stretch]) -> Iterator[Stretch]:
    """Stretches in order, joined where they touch or lie over each other."""
    start = end = 0
    for first, count in sorted(stretch for group in groups for stretch in group):
        if first > end:
            if end > start:
                yield start, end - start
            start = first
        end = max(end, first + count)
    if end > start:
        yield start, end - start
