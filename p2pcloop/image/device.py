"""The device that a guest sees: a merged image with an overlay on top.

A read looks into the overlay, then the map, then the chunk. Writes go into the overlay only, in
whole blocks: if a block is written in part, its rest is read first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter

from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.overlay import Overlay, State
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.layer import Pack
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.scatter import Scatter
from p2pcloop.image.touches import Touches
from p2pcloop.units import BLOCK_SIZE

_ZERO_BLOCK = memoryview(bytes(BLOCK_SIZE))

_WINDOW = 1 << 13
"""Blocks whose states are read together: as many as the largest read has."""

_MAX_STRETCHES = 1 << 14
"""Stretches of maps and overlay that one call of `extents` reads: some milliseconds."""


class ImageDevice:
    """A `BlockDevice` (image/api.py); without an overlay it is read-only.

    Attributes:
        image: below the overlay.
        overlay: holds the changes, or None.
        touches: records the blocks that are read of the image, or None.
    """

    def __init__(
        self,
        image: MergedImage,
        overlay: Overlay | None = None,
        touches: Touches | None = None,
        *,
        length: int = 0,
    ) -> None:
        """`length`: bytes of the device if they are not all of the image: no multiple of 4096, or
        the disk of a state; 0 for all of it."""
        self.image = image
        self.overlay = overlay
        self.touches = touches
        self._length = length

    def with_overlay(self, overlay: Overlay) -> ImageDevice:
        """The same image below an overlay of its own, which its decoded chunks are shared with."""
        return ImageDevice(self.image, overlay, length=self._length)

    @property
    def size(self) -> int:
        """See `BlockDevice.size`."""
        return self._length or self.image.size

    @property
    def read_only(self) -> bool:
        """See `BlockDevice.read_only`."""
        return self.overlay is None

    @property
    def serial(self) -> bytes:
        """See `BlockDevice.serial`: the first digits of the image's id."""
        return self.image.image_id.hex()[:20].encode("ascii")

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        """See `BlockDevice.read_into`."""
        if len(views) == 1 and self.copy_decoded(offset, views[0]):
            return
        scatter = Scatter(views)
        length = sum(map(len, views))
        if not length:
            return
        missing: list[ByteRange] = []
        if self.overlay is None:
            missing = self._read_image(offset, length, scatter)
        else:
            end = offset + length
            first = offset // BLOCK_SIZE
            count = -(-end // BLOCK_SIZE) - first
            for block, blocks, state in self.overlay.runs(first, count):
                start = max(offset, block * BLOCK_SIZE)
                size = min(end, (block + blocks) * BLOCK_SIZE) - start
                if state is State.ABSENT:
                    missing += self._read_image(start, size, scatter)
                elif state is State.ZERO:
                    scatter.zero(size)
                else:
                    self.overlay.read_into(start, scatter.take(size))
        if missing:
            raise Missing(missing)

    def copy_decoded(self, offset: int, view: memoryview) -> bool:
        """See `BlockDevice.copy_decoded`."""
        if (offset | len(view)) % BLOCK_SIZE or not view:
            return False
        if self.overlay is not None:
            runs = self.overlay.runs(offset // BLOCK_SIZE, len(view) // BLOCK_SIZE)
            if len(runs) != 1 or runs[0][2] is not State.ABSENT:
                return False
        if not self.image.copy_decoded(offset, view):
            return False
        self._record(offset, len(view))
        return True

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """See `BlockDevice.read_ahead`."""
        self.image.read_ahead(
            below for offset, length in ranges for below in self.below(*_blocks(offset, length))
        )

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """See `BlockDevice.extents`."""
        end = offset + length
        first, count = _blocks(offset, length)
        reached = first * BLOCK_SIZE
        stretches = islice(self._stretches(first, count), _MAX_STRETCHES)
        for zeros, together in groupby(stretches, itemgetter(1)):
            reached += sum(blocks for blocks, _ in together) * BLOCK_SIZE
            stop = min(reached, end)
            yield stop - offset, zeros
            offset = stop

    def require(self, offset: int, length: int) -> None:
        """See `BlockDevice.require`."""
        missing: list[ByteRange] = []
        for first, count in self.below(*_blocks(offset, length)):
            missing += self.image.missing(first, count)
        if missing:
            raise Missing(missing)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """See `BlockDevice.write`."""
        end = offset + sum(map(len, views))
        before, after = offset % BLOCK_SIZE, -end % BLOCK_SIZE
        if before or after:
            head, tail = self._edges(offset, end, before, after)
            views = [head, *views, tail]
        self._writable.write(offset - before, views)

    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool) -> None:  # noqa: ARG002
        """See `BlockDevice.write_zeroes`. Blocks of zeros never take room, with or without unmap.

        The partial blocks at both ends are written first: if one is missing, nothing was changed.
        """
        end = offset + length
        first, last = -(-offset // BLOCK_SIZE), end // BLOCK_SIZE
        if first > last:
            self.write(offset, [_ZERO_BLOCK[:length]])
            return
        edges = [(offset, first * BLOCK_SIZE), (last * BLOCK_SIZE, end)]
        self._require([edge for edge in edges if edge[0] < edge[1]])
        for start, stop in edges:
            if start < stop:
                self.write(start, [_ZERO_BLOCK[: stop - start]])
        if first < last:
            self._writable.zero(first, last - first)

    def discard(self, offset: int, length: int) -> None:
        """See `BlockDevice.discard`."""
        first, last = -(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE
        if first < last:
            self._writable.zero(first, last - first)

    def prepare_flush(self) -> Callable[[], None]:
        """See `BlockDevice.prepare_flush`."""
        return _nothing if self.overlay is None else self.overlay.prepare_flush()

    def whole_chunk(
        self, offset: int, length: int, codec: Codec
    ) -> tuple[Pack, Chunk, bytes] | None:
        """See `MergedImage.whole_chunk`; also None if the overlay holds any of these bytes."""
        first, count = _blocks(offset, length)
        if list(self.below(first, count)) != [(first, count)]:
            return None
        return self.image.whole_chunk(first, count, codec)

    def close(self) -> None:
        """See `BlockDevice.close`."""
        self.image.close()
        self.close_overlay()

    def close_overlay(self) -> None:
        """Close the overlay alone; other devices may have the same image."""
        if self.overlay is not None:
            self.overlay.close()

    def below(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """The stretches of blocks that are not in the overlay: first block, blocks."""
        if self.overlay is None:
            yield first, count
            return
        for block, blocks, state in self.overlay.runs(first, count):
            if state is State.ABSENT:
                yield block, blocks

    def _stretches(self, first: int, count: int) -> Iterator[tuple[int, bool]]:
        """Cut blocks into stretches: number of blocks, whether they are known to be zeros."""
        if self.overlay is None:
            yield from self.image.map.extents(first, count)
            return
        end = first + count
        for start in range(first, end, _WINDOW):
            for block, blocks, state in self.overlay.runs(start, min(_WINDOW, end - start)):
                if state is State.ABSENT:
                    yield from self.image.map.extents(block, blocks)
                else:
                    yield blocks, state is State.ZERO

    @property
    def _writable(self) -> Overlay:
        assert self.overlay is not None, "a front end let a write through to a read-only device"
        return self.overlay

    def _read_image(self, offset: int, length: int, scatter: Scatter) -> list[ByteRange]:
        """See `MergedImage.read_into`. Missing blocks count as touched when they are first read."""
        self._record(offset, length)
        return self.image.read_into(offset, length, scatter)

    def _record(self, offset: int, length: int) -> None:
        if self.touches is not None and self.touches.noting:
            self.touches.record(*_blocks(offset, length))

    def _edges(
        self, offset: int, end: int, before: int, after: int
    ) -> tuple[memoryview, memoryview]:
        """The bytes before `offset` in its block, and those after `end` in its block."""
        head, tail = memoryview(bytearray(before)), memoryview(bytearray(after))
        missing: list[ByteRange] = []
        for start, view in ((offset - before, head), (end, tail)):
            try:
                self.read_into(start, [view])
            except Missing as absent:
                missing += absent.ranges
        if missing:
            raise Missing(missing)
        return head, tail

    def _require(self, edges: list[tuple[int, int]]) -> None:
        """Raise `Missing` unless the blocks that hold these stretches can be read."""
        missing: list[ByteRange] = []
        for start, _ in edges:
            block = memoryview(bytearray(BLOCK_SIZE))
            try:
                self.read_into(start - start % BLOCK_SIZE, [block])
            except Missing as absent:
                missing += absent.ranges
        if missing:
            raise Missing(missing)


def _blocks(offset: int, length: int) -> tuple[int, int]:
    """First block and number of blocks that a range of bytes touches."""
    first = offset // BLOCK_SIZE
    return first, -(-(offset + length) // BLOCK_SIZE) - first


def _nothing() -> None:
    """A device without an overlay has nothing to flush."""
