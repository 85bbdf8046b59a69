"""Targets of deltas: an image file, a stored image, or an image with an overlay on top."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import ZERO_CHUNK
from p2pcloop.formats.overlay import Overlay, State
from p2pcloop.image.api import BlockDevice, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.zeros import files_device
from p2pcloop.making.build import NextData, Read, check_image_size, no_holes
from p2pcloop.making.changes import Stretch, Target
from p2pcloop.units import BLOCK_SIZE

_SPAN = 1 << 20
"""Blocks whose states in an overlay are read together."""


class FileTarget:
    """An image file; all of it may differ."""

    def __init__(self, read: Read, size: int, next_data: NextData = no_holes) -> None:
        """`read` returns the `size` bytes of the file; zeros fill the last block of the device.

        Args:
            next_data: see `NextData`.

        Raises:
            UsageError: the image is empty or larger than 16 TiB.
        """
        self.size = check_image_size(size)
        self._read = read
        self._next_data = next_data
        self._length = size

    def stretches(self) -> Iterable[Stretch]:
        """See `Target.stretches`."""
        return [(0, self.size // BLOCK_SIZE)]

    def next_data(self, block: int) -> int:
        """See `Target.next_data`."""
        offset = block * BLOCK_SIZE
        return self._next_data(offset) // BLOCK_SIZE if offset < self._length else block

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
    """A device, read on one thread at a time; waits for missing ranges."""

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

    def next_data(self, block: int) -> int:
        """See `Target.next_data`."""
        return block

    def read(self, block: int, count: int) -> bytes:
        """See `Target.read`.

        Raises:
            P2pcloopError: a missing range cannot be fetched.
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


class JoinedTarget:
    """Two targets one behind the other on a device, with zeros between them."""

    def __init__(self, lower: Target, upper: Target, start: int) -> None:
        """`start`: the byte at which `upper` begins, a multiple of 4096 behind `lower`."""
        self.size = start + upper.size
        self._lower = lower
        self._upper = upper
        self._start = start // BLOCK_SIZE

    def stretches(self) -> Iterator[Stretch]:
        """See `Target.stretches`."""
        yield from self._lower.stretches()
        for first, count in self._upper.stretches():
            yield first + self._start, count

    def next_data(self, block: int) -> int:
        """See `Target.next_data`."""
        return block

    def read(self, block: int, count: int) -> bytes:
        """See `Target.read`."""
        parts = []
        lower = self._lower.size // BLOCK_SIZE
        end = block + count
        if block < lower:
            parts.append(self._lower.read(block, min(end, lower) - block))
        if (gap := min(end, self._start) - max(block, lower)) > 0:
            parts.append(bytes(gap * BLOCK_SIZE))
        if end > self._start:
            first = max(block, self._start)
            parts.append(self._upper.read(first - self._start, end - first))
        return b"".join(parts)


def files_target(
    image: MergedImage,
    overlay: Overlay,
    supply: Callable[[Missing], None],
    start: int,
    base: MergedImage | None = None,
) -> JoinedTarget:
    """An image with the device of a files overlay behind it.

    Args:
        image: what the overlay was made on.
        overlay: open.
        supply: fetches what is missing of `image`.
        start: the byte at which the overlay's device begins.
        base: what it is to be compared with, where that is not `image` but one with more layers
            on the same ones.
    """
    inside: list[Stretch] = []
    stretches: Iterable[Stretch] = overlay_stretches(overlay)
    if base is not None:
        size = max(image.size, min(base.size, start + overlay.image_size))
        upper = list(upper_stretches(base, len(image.layers), size))
        first = start // BLOCK_SIZE
        inside = list(_within(upper, 0, image.size // BLOCK_SIZE))
        last = first + overlay.image_size // BLOCK_SIZE
        stretches = _union(stretches, _within(upper, first, last))
    lower = DeviceTarget(ImageDevice(image), supply, inside)
    return JoinedTarget(lower, DeviceTarget(files_device(overlay), supply, stretches), start)


def _within(stretches: Iterable[Stretch], first: int, end: int) -> Iterator[Stretch]:
    """The parts of stretches between two blocks, counted from the first of these."""
    for start, count in stretches:
        begin, stop = max(start, first), min(start + count, end)
        if begin < stop:
            yield begin - first, stop - begin


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
        supply: fetches what is missing of `image`.
        base: what it is to be compared with, where that is not `image` but one with more layers
            on the same ones.
    """
    stretches = overlay_stretches(overlay)
    if base is not None:
        stretches = _union(stretches, upper_stretches(base, len(image.layers), image.size))
    return DeviceTarget(ImageDevice(image, overlay), supply, stretches)


def overlay_stretches(overlay: Overlay) -> Iterator[Stretch]:
    """The stretches of blocks that an overlay holds."""
    blocks = overlay.image_size // BLOCK_SIZE
    for at in range(0, blocks, _SPAN):
        for first, count, state in overlay.runs(at, min(_SPAN, blocks - at)):
            if state is not State.ABSENT:
                yield first, count


def upper_stretches(image: MergedImage, layers: int, size: int) -> Iterator[Stretch]:
    """Stretches of the first `size` bytes in which an image may differ from its lowest `layers`."""
    blocks = size // BLOCK_SIZE
    for run in image.map:
        # Zeros of all layers are joined: the map does not say of which layer they are.
        if (run.layer >= layers or run.chunk == ZERO_CHUNK) and run.start < blocks:
            yield run.start, min(run.end, blocks) - run.start


def _union(*groups: Iterable[Stretch]) -> Iterator[Stretch]:
    """All stretches in order; those that touch or overlap are joined."""
    start = end = 0
    for first, count in sorted(stretch for group in groups for stretch in group):
        if first > end:
            if end > start:
                yield start, end - start
            start = first
        end = max(end, first + count)
    if end > start:
        yield start, end - start
