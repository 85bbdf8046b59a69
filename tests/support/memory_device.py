"""A device in memory for the front ends' tests: ranges can be withheld, operations made to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.block.shared_flush import SharedFlush

TORRENT = bytes(range(20))
"""The torrent that `Missing` names; the device lies in it from offset 0 on."""


class MemoryDevice:
    """A `BlockDevice` over a bytearray.

    Attributes:
        content: what the device holds, withheld blocks included.
        durable: what it held at the last flush that ended.
        calls: (operation, offset, length) of each call that went through, in order; the ranges of
            `read_ahead` each as `ahead`; `write_zeroes` with `may_unmap` as `write_zeroes_unmap`.
        failures: operation (`read`, `write`, `write_zeroes`, `discard`, `flush`) → the error that
            each call raises as long as it is here.
    """

    def __init__(
        self, content: bytes | int, *, read_only: bool = False, serial: bytes = b"memory"
    ) -> None:
        self.content = bytearray(content)
        assert len(self.content) % BLOCK_SIZE == 0
        self.durable = bytes(self.content)
        self.read_only = read_only
        self.serial = serial
        self.calls: list[tuple[str, int, int]] = []
        self.failures: dict[str, P2pcloopError] = {}
        self.closed = False
        self._withheld: set[int] = set()

    @property
    def size(self) -> int:
        return len(self.content)

    def withhold(self, offset: int, length: int) -> None:
        """Make the blocks that the range touches missing until `bring` or a whole write."""
        self._withheld |= _touched(offset, length)

    def fetch(self, offset: int, length: int) -> None:
        """Make the blocks that the range touches present."""
        self._withheld -= _touched(offset, length)

    def lacks(self, offset: int, length: int) -> bool:
        return not self._withheld.isdisjoint(_touched(offset, length))

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        length = sum(map(len, views))
        self._check("read", offset, length)
        self._need(_touched(offset, length))
        position = offset
        for view in views:
            view[:] = self.content[position : position + len(view)]
            position += len(view)
        self.calls.append(("read", offset, length))

    def copy_decoded(self, offset: int, view: memoryview) -> bool:  # noqa: ARG002  see BlockDevice
        return False

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.calls += [("ahead", offset, length) for offset, length in ranges]

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Blocks that are zeros are holes, withheld ones too."""
        end = offset + length
        for zeros, blocks in groupby(sorted(_touched(offset, length)), self._is_zeros):
            stop = min(end, (max(blocks) + 1) * BLOCK_SIZE)
            yield stop - offset, zeros
            offset = stop

    def require(self, offset: int, length: int) -> None:
        self._check("read", offset, length)
        self._need(_touched(offset, length))
        self.calls.append(("require", offset, length))

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        data = b"".join(views)
        self._check("write", offset, len(data))
        self._replace(offset, data)
        self.calls.append(("write", offset, len(data)))

    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool) -> None:
        self._check("write_zeroes", offset, length)
        self._replace(offset, bytes(length))
        self.calls.append(("write_zeroes_unmap" if may_unmap else "write_zeroes", offset, length))

    def discard(self, offset: int, length: int) -> None:
        self._check("discard", offset, length)
        first, last = -(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE
        if first < last:
            self._replace(first * BLOCK_SIZE, bytes((last - first) * BLOCK_SIZE))
        self.calls.append(("discard", offset, length))

    def prepare_flush(self) -> Callable[[], None]:
        noted = bytes(self.content)

        def make_durable() -> None:
            if (error := self.failures.get("flush")) is not None:
                raise error
            self.durable = noted
            self.calls.append(("flush", 0, 0))

        return make_durable

    def close(self) -> None:
        self.closed = True

    def _is_zeros(self, block: int) -> bool:
        return not any(self.content[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE])

    def _check(self, operation: str, offset: int, length: int) -> None:
        assert not self.closed
        assert 0 <= offset <= offset + length <= self.size
        assert operation == "read" or not self.read_only
        if (error := self.failures.get(operation)) is not None:
            raise error

    def _need(self, blocks: set[int]) -> None:
        if lacking := sorted(blocks & self._withheld):
            raise Missing([ByteRange(TORRENT, n * BLOCK_SIZE, BLOCK_SIZE) for n in lacking])

    def _replace(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        whole = set(range(-(-offset // BLOCK_SIZE), end // BLOCK_SIZE))
        self._need(_touched(offset, len(data)) - whole)
        self.content[offset:end] = data
        self._withheld -= whole


class MemoryBackend:
    """A `Backend` whose `supply` waits until the test brings what was asked for.

    Attributes:
        device: what is served.
        asked: every `Missing` that `supply` was called with, in order.
        automatic: bring at once whatever is asked for, instead of waiting.
        failure: what `supply` raises, now or while it waits (see `fail`).
    """

    def __init__(self, device: MemoryDevice, *, automatic: bool = False) -> None:
        self.device = device
        self.asked: list[Missing] = []
        self.automatic = automatic
        self.failure: P2pcloopError | None = None
        self._changed = trio.Condition()
        self._shared_flush = SharedFlush(device)

    async def flush(self) -> None:
        await self._shared_flush.flush()

    async def supply(self, missing: Missing) -> None:
        async with self._changed:
            self.asked.append(missing)
            self._changed.notify_all()
            while any(self.device.lacks(need.offset, need.length) for need in missing.ranges):
                if self.failure is not None:
                    raise self.failure
                if self.automatic:
                    for need in missing.ranges:
                        self.device.fetch(need.offset, need.length)
                else:
                    await self._changed.wait()

    async def wait_asked(self, count: int) -> None:
        """Return once `supply` has been called `count` times in all."""
        async with self._changed:
            while len(self.asked) < count:
                await self._changed.wait()

    async def fetch(self, offset: int, length: int) -> None:
        """Make a range present and wake the reads that wait for it."""
        self.device.fetch(offset, length)
        async with self._changed:
            self._changed.notify_all()

    async def fail(self, error: P2pcloopError) -> None:
        """Let all who wait, now and later, get `error`."""
        self.failure = error
        async with self._changed:
            self._changed.notify_all()


def _touched(offset: int, length: int) -> set[int]:
    return set(range(offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)))
