"""Split virtqueues, the device's side (virtio 1.2, section 2.7), over memory shared with a guest.

The guest writes the rings and descriptors: they may be wrong, hostile, or change while they are
read. So each field is read once and checked before it is used. An impossible value raises
`VirtqueueError`, after which the queue must not be used again.

Order of memory accesses: the driver must see the data before the used element and the element
before `used.idx`. x86 keeps stores in order and loads in order, and the interpreter stores each
item of a memoryview at once, so plain assignments are enough. Only a store that must be seen before
a later load (publish, then read whether the driver wants a call) needs a fence, see `_fence`. A CPU
with weaker order would need a release fence before `used.idx` is stored and an acquire fence after
`avail.idx` is loaded; a big-endian one, byte swaps.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable

from p2pcloop.errors import P2pcloopError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

MAX_QUEUE_SIZE = 1024
"""Descriptors in a queue's table, or in an indirect one, at most."""

DESCRIPTOR_SIZE = 16
_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next

F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29

_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_AVAIL_NO_INTERRUPT = 1
_USED_NO_NOTIFY = 1

_lock = threading.Lock()


def _fence() -> None:
    """A full fence: all stores so far are seen before any later load. Taking a lock is one."""
    with _lock:
        pass


class VirtqueueError(P2pcloopError):
    """The driver broke the rules of the ring or named memory that it did not share."""


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """A run of guest memory that is mapped here.

    Attributes:
        guest_address: of its first byte in the guest's descriptors.
        user_address: of its first byte in the front end; rings have such addresses.
        view: its bytes, writable.
    """

    guest_address: int
    user_address: int
    view: memoryview


class GuestMemory:
    """The regions that a guest shares; they do not overlap."""

    def __init__(self, regions: Iterable[MemoryRegion]) -> None:
        self._regions = tuple(regions)
        self._guest = [(r.guest_address, len(r.view), r.view) for r in self._regions]
        self.largest = max(
            self._guest, key=lambda region: region[1], default=(0, 0, memoryview(b""))
        )

    def find(self, address: int, length: int) -> list[memoryview]:
        """Return the views that make up a range of guest addresses, in order.

        Raises:
            VirtqueueError: the range is empty or not all of it is shared.
        """
        for start, size, view in self._guest:
            offset = address - start
            if offset >= 0 and offset + length <= size and length:
                return [view[offset : offset + length]]
        return self._find_split(address, length)

    def find_ring(self, address: int, length: int) -> memoryview:
        """Return the view of a part of a ring, which the front end names by its own addresses.

        Raises:
            VirtqueueError: the range is not within one region.
        """
        for region in self._regions:
            offset = address - region.user_address
            if offset >= 0 and offset + length <= len(region.view):
                return region.view[offset : offset + length]
        raise VirtqueueError(
            tr(
                "a ring of {length} bytes at {address:#x} is not in shared memory",
                length=length,
                address=address,
            )
        )

    def release(self) -> None:
        """Release the regions' views."""
        for region in self._regions:
            region.view.release()

    def _find_split(self, address: int, length: int) -> list[memoryview]:
        views: list[memoryview] = []
        position, end = address, address + length
        while position < end:
            for start, size, view in self._guest:
                offset = position - start
                if 0 <= offset < size:
                    piece = view[offset : min(offset + end - position, size)]
                    break
            else:
                raise VirtqueueError(
                    tr("guest address {position:#x} is not in shared memory", position=position)
                )
            views.append(piece)
            position += len(piece)
        if not views:
            raise VirtqueueError(tr("a buffer of no bytes at {address:#x}", address=address))
        return views


@dataclass(slots=True)
class Chain:
    """One request's buffers.

    Attributes:
        head: the descriptor that names the chain in the used ring.
        readable: buffers that the driver filled for the device, in order.
        writable: buffers that the device may fill, in order.
    """

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class Virtqueue:
    """One split virtqueue.

    `pop` takes a chain that the driver made available; `push` returns chains in any order;
    `publish` shows the driver the pushed chains and returns whether it wants to be called.
    """

    def __init__(
        self,
        memory: GuestMemory,
        *,
        size: int,
        descriptors: int,
        available: int,
        used: int,
        next_available: int,
        features: int,
    ) -> None:
        """Lay the queue over memory.

        Args:
            size: entries, a power of two up to `MAX_QUEUE_SIZE`.
            descriptors, available, used: the front end's addresses of the three parts.
            next_available: free-running index (16 bits) of the next entry to take.
            features: those that were negotiated.

        Raises:
            VirtqueueError: a part is not aligned or not in shared memory, or the size is wrong.
        """
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise VirtqueueError(
                tr(
                    "{size} is no queue size: a power of two up to {max_queue_size}",
                    size=size,
                    max_queue_size=MAX_QUEUE_SIZE,
                )
            )
        if descriptors % 16 or available % 2 or used % 4:
            raise VirtqueueError("a part of the queue is not aligned")
        self.size = size
        self.in_flight = 0
        self._memory = memory
        self._mask = size - 1
        self._indirect = bool(features & F_INDIRECT_DESC)
        self._event_idx = bool(features & F_EVENT_IDX)
        self._table = memory.find_ring(descriptors, size * DESCRIPTOR_SIZE)
        self._avail = memory.find_ring(available, 6 + 2 * size).cast("H")
        ring = memory.find_ring(used, 6 + 8 * size)
        self._used = ring.cast("H")
        self._used_ring = ring[4 : 4 + 8 * size].cast("I")
        self._next = self._avail_idx = next_available
        self._used_idx = self._published = self._used[1]

    @property
    def next_available(self) -> int:
        """The free-running index of the next entry that `pop` takes."""
        return self._next

    def pop(self) -> Chain | None:
        """Take the next chain that the driver made available, or None if there is none.

        Raises:
            VirtqueueError: see the class; the chain is not taken.
        """
        if self._next == self._avail_idx:
            self._avail_idx = self._avail[1]
            count = (self._avail_idx - self._next) & 0xFFFF
            if count > self.size:
                raise VirtqueueError(
                    tr(
                        "{count} entries available in a queue of {size}",
                        count=count,
                        size=self.size,
                    )
                )
            if not count:
                return None
        if self.in_flight == self.size:
            raise VirtqueueError("more requests than descriptors")
        chain = self._walk(self._avail[2 + (self._next & self._mask)])
        self._next = (self._next + 1) & 0xFFFF
        self.in_flight += 1
        return chain

    def push(self, chain: Chain, written: int) -> None:
        """Return a chain with `written` bytes of its writable part filled; shown by `publish`."""
        slot = 2 * (self._used_idx & self._mask)
        self._used_ring[slot] = chain.head
        self._used_ring[slot + 1] = written
        self._used_idx = (self._used_idx + 1) & 0xFFFF
        self.in_flight -= 1

    def publish(self) -> bool:
        """Show the driver the pushed chains; return whether to call it."""
        old, new = self._published, self._used_idx
        if old == new:
            return False
        self._published = self._used[1] = new
        _fence()
        if self._event_idx:
            event = self._avail[2 + self.size]
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._avail[0] & _AVAIL_NO_INTERRUPT

    def refuse_kicks(self) -> None:
        """Ask the driver not to kick: the server looks at the ring anyway."""
        if not self._event_idx:
            self._used[0] = _USED_NO_NOTIFY

    def want_kicks(self) -> bool:
        """Ask the driver to kick when it adds chains; True if it has added some already."""
        if self._event_idx:
            self._used[2 + 4 * self.size] = self._next
        else:
            self._used[0] = 0
        _fence()
        return self._avail[1] != self._next

    def release(self) -> None:
        """Let go of the memory, whatever refers to this queue; only `next_available` stays."""
        for view in (self._table, self._avail, self._used, self._used_ring):
            view.release()

    def _walk(self, head: int) -> Chain:
        chain = Chain(head, [], [])
        readable, writable = chain.readable, chain.writable
        table, limit, index = self._table, self.size, head
        start, size, view = self._memory.largest
        unpack = _DESCRIPTOR.unpack_from
        steps = 0
        while index < limit and steps < limit:
            address, length, flags, following = unpack(table, DESCRIPTOR_SIZE * index)
            steps += 1
            if flags & _INDIRECT:
                if table is not self._table or flags & _NEXT or not self._indirect:
                    raise VirtqueueError("an indirect table where none may be")
                table = self._find_indirect(address, length)
                limit, index, steps = length // DESCRIPTOR_SIZE, 0, 0
                continue
            if flags & _WRITE:
                views = writable
            elif writable:
                raise VirtqueueError("a buffer to read after one to write")
            else:
                views = readable
            offset = address - start
            if offset >= 0 and 0 < length <= size - offset:
                views.append(view[offset : offset + length])
            else:
                views += self._memory.find(address, length)
            if not flags & _NEXT:
                return chain
            index = following
        raise VirtqueueError(
            tr("a chain that is a loop, or descriptor {index} of {limit}", index=index, limit=limit)
        )

    def _find_indirect(self, address: int, length: int) -> memoryview:
        if not 0 < length <= MAX_QUEUE_SIZE * DESCRIPTOR_SIZE or length % DESCRIPTOR_SIZE:
            raise VirtqueueError(tr("an indirect table of {length} bytes", length=length))
        views = self._memory.find(address, length)
        if len(views) > 1:
            raise VirtqueueError("an indirect table across two regions of memory")
        return views[0]
