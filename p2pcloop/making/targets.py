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
from p2pcloop.words import tr

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
                tr(
                    "the image became shorter than {length} bytes while it was read",
                    length=self._length,
                ),
                hint="leave it alone while it is read, and try again",
            )
        return data.ljust(length, b"\0")


class DeviceTarget:
    """A device, read on one thread at a time; waits for missing ranges."""

    def __init__(
        self,
        device: BlockDevice,
        supply: Callable[[Missing], None],
        stretches: Iterable[Stretch],
        size: int = 0,
    ) -> None:
        """`size`: bytes from its start that are the target, whole blocks; 0 for all of it."""
        self.size = size or device.size
        self._device = device
        self._supply = supply
        self._stretches = _within(stretches, 0, size // BLOCK_SIZE) if size else stretches
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
    """Targets one behind the other on a device, with zeros between them."""

    def __init__(self, *parts: tuple[int, Target]) -> None:
        """Join parts.

        Args:
            parts: the byte at which each begins, a multiple of 4096 behind the part before; the
                first begins at 0.
        """
        self._parts = [(start // BLOCK_SIZE, part) for start, part in parts]
        start, last = parts[-1]
        self.size = start + last.size

    def stretches(self) -> Iterator[Stretch]:
        """See `Target.stretches`."""
        for start, part in self._parts:
            for first, count in part.stretches():
                yield first + start, count

    def next_data(self, block: int) -> int:
        """See `Target.next_data`."""
        for start, part in self._parts:
            end = start + part.size // BLOCK_SIZE
            if block < end and (found := start + part.next_data(max(0, block - start))) < end:
                return found
        return max(block, self.size // BLOCK_SIZE)

    def read(self, block: int, count: int) -> bytes:
        """See `Target.read`."""
        found: list[bytes] = []
        at, end = block, block + count
        for start, part in self._parts:
            first, stop = max(at, start), min(end, start + part.size // BLOCK_SIZE)
            if first < stop:
                found += (bytes((first - at) * BLOCK_SIZE), part.read(first - start, stop - first))
                at = stop
        return b"".join((*found, bytes((end - at) * BLOCK_SIZE)))


def files_target(
    image: MergedImage,
    overlay: Overlay,
    supply: Callable[[Missing], None],
    start: int,
    base: MergedImage | None = None,
    size: int = 0,
) -> JoinedTarget:
    """An image with the device of a files overlay behind it.

    Args:
        image: what the overlay was made on.
        overlay: open.
        supply: fetches what is missing of `image`.
        start: the byte at which the overlay's device begins.
        base: what it is to be compared with, where that is not `image` but one with more layers
            on the same ones.
        size: bytes of `image` that are its disk, where that is not all of it: that of a state.
    """
    first, size = start // BLOCK_SIZE, size or image.size
    last = first + overlay.image_size // BLOCK_SIZE
    upper: list[Stretch] = []
    if base is not None:
        end = max(image.size, min(base.size, last * BLOCK_SIZE))
        upper = list(upper_stretches(base, len(image.layers), end))
    behind: Iterable[Stretch] = _within(upper, first, last)
    is_state = size < image.size
    if is_state:  # its memory lies where the overlay's device is to be
        behind = _union(behind, _within(upper_stretches(image, 0, image.size), first, last))
    inside = _within(upper, 0, size // BLOCK_SIZE)
    parts: list[tuple[int, Target]] = [(0, DeviceTarget(ImageDevice(image), supply, inside, size))]
    if is_state and size < start:
        parts.append((size, FileTarget(lambda _offset, length: bytes(length), start - size)))
    stretches = _union(overlay_stretches(overlay), behind)
    parts.append((start, DeviceTarget(files_device(overlay), supply, stretches)))
    return JoinedTarget(*parts)


def _within(stretches: Iterable[Stretch], first: int, end: int) -> Iterator[Stretch]:
    """The parts of stretches between two blocks, counted from the first of these."""
    for start, count in stretches:
        begin, stop = max(start, first), min(start + count, end)
        if begin < stop:
            yield begin - first, stop - begin


def overlay_target(
    image: MergedImage,
    overlay: Overlay | None,
    supply: Callable[[Missing], None],
    base: MergedImage | None = None,
    size: int = 0,
) -> DeviceTarget:
    """An image with an overlay on top.

    Args:
        image: what the overlay was made on.
        overlay: open; None for no changes.
        supply: fetches what is missing of `image`.
        base: what it is to be compared with, where that is not `image` but one with more layers
            on the same ones.
        size: see `DeviceTarget`.
    """
    stretches: Iterable[Stretch] = () if overlay is None else overlay_stretches(overlay)
    if base is not None:
        stretches = _union(stretches, upper_stretches(base, len(image.layers), image.size))
    return DeviceTarget(ImageDevice(image, overlay), supply, stretches, size)


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
