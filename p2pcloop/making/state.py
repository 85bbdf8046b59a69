"""The device of a state, joined of its parts (docs/formats/state.md)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Protocol

from p2pcloop.errors import FormatError
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.making.changes import Stretch, Target
from p2pcloop.making.targets import FileTarget, JoinedTarget
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr


class Memory(Protocol):
    """The memory of a guest, which does not change any more.

    Attributes:
        size: bytes, a multiple of 4096.
        is_whole: whether what lies in no extent is zeros. Else it is as in the state that the guest
            was resumed from; and a page in an extent may be as there, too.
    """

    @property
    def size(self) -> int: ...

    @property
    def is_whole(self) -> bool: ...

    def extents(self) -> Sequence[tuple[int, int]]:
        """Offset and length, multiples of 4096, of what has content of its own, in order."""

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes inside one extent; may be called on any thread."""


class MemoryTarget:
    """Memory as a `Target`."""

    def __init__(self, memory: Memory) -> None:
        self.size = memory.size
        self._memory = memory
        self._extents = [(start, start + length) for start, length in memory.extents()]
        self._starts = [start for start, _ in self._extents]

    def stretches(self) -> Iterator[Stretch]:
        """See `Target.stretches`."""
        whole = [(0, self.size)]
        for start, end in whole if self._memory.is_whole else self._extents:
            yield start // BLOCK_SIZE, (end - start) // BLOCK_SIZE

    def next_data(self, block: int) -> int:
        """See `Target.next_data`."""
        offset = block * BLOCK_SIZE
        for start, end in self._extents[self._first(offset) :]:
            if offset < end:
                return max(offset, start) // BLOCK_SIZE
        return max(offset, self.size) // BLOCK_SIZE

    def read(self, block: int, count: int) -> bytes:
        """See `Target.read`."""
        offset, data = block * BLOCK_SIZE, bytearray(count * BLOCK_SIZE)
        for start, end in self._extents[self._first(offset) :]:
            first, stop = max(start, offset), min(end, offset + len(data))
            if start >= offset + len(data):
                break
            if first < stop:
                data[first - offset : stop - offset] = self._memory.read(first, stop - first)
        return bytes(data)

    def _first(self, offset: int) -> int:
        """The number of the first extent that may end behind a byte."""
        return max(0, bisect_right(self._starts, offset) - 1)


def state_target(
    disk: Target, memory: Target, device_state: bytes, machine: MachineState
) -> JoinedTarget:
    """Join the parts of a state.

    Args:
        disk, memory: their devices, which have the sizes that `machine` says.
        machine: of the state.

    Raises:
        FormatError: a part is of another size; or a field of `machine` is outside its limits.
    """
    machine.check()
    found = {
        "disk": (disk.size, machine.disk.size),
        "memory": (memory.size, machine.memory.size),
        "device state": (len(device_state), machine.device_state.length),
    }
    for what, (size, said) in found.items():
        if size != said:
            raise FormatError(
                tr(
                    "the {what} of the guest has {size} bytes, and {said} were said",
                    what=what,
                    size=size,
                    said=said,
                )
            )
    return JoinedTarget(
        (0, disk),
        (machine.memory.start, memory),
        (machine.device_state.start, _bytes_target(device_state)),
    )


def _bytes_target(data: bytes) -> FileTarget:
    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    return FileTarget(read, len(data))
