"""A virtio driver in a few lines: it lays out a split ring in memory and makes chains available."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from p2pcloop.protocol.virtqueue import GuestMemory, MemoryRegion, Virtqueue

GUEST = 0x10_0000
"""Guest address of the first byte of memory; `USER` is the front end's address of it."""
USER = 0x7000_0000

NEXT, WRITE, INDIRECT = 1, 2, 4
_DESCRIPTOR = struct.Struct("<QIHH")
_RING_SPACE = 1 << 16


class Driver:
    """The driver's side of one queue, at the start of `memory`; buffers lie behind the ring.

    All addresses that it takes and returns are guest addresses.
    """

    def __init__(self, memory: memoryview, size: int = 8, *, event_idx: bool = False) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.descriptors, self.available, self.used = 0, 0x8000, 0xA000
        self.seen = 0
        self._free = list(range(size))
        self._chains: dict[int, list[int]] = {}
        self._heap = _RING_SPACE

    def virtqueue(self, features: int, base: int = 0) -> Virtqueue:
        """Return the device's side of the same queue."""
        memory = GuestMemory([MemoryRegion(GUEST, USER, self.memory)])
        return Virtqueue(
            memory,
            size=self.size,
            descriptors=USER + self.descriptors,
            available=USER + self.available,
            used=USER + self.used,
            next_available=base,
            features=features,
        )

    def allocate(self, length: int, content: bytes = b"") -> int:
        """Return the guest address of `length` fresh bytes, which begin with `content`."""
        at = self._heap
        self._heap += -(-length // 16) * 16
        assert self._heap <= len(self.memory)
        self.memory[at : at + length] = content.ljust(length, b"\0")
        return GUEST + at

    def bytes_at(self, address: int, length: int) -> bytes:
        return bytes(self.memory[address - GUEST : address - GUEST + length])

    def describe(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        """Write a descriptor of the ring's table."""
        at = self.descriptors + _DESCRIPTOR.size * index
        _DESCRIPTOR.pack_into(self.memory, at, address, length, flags, following)

    def table(self, buffers: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
        """Put (address, length, flags) into an indirect table; return the buffer that names it."""
        last = len(buffers) - 1
        packed = b"".join(
            _DESCRIPTOR.pack(address, length, flags | (NEXT if n < last else 0), n + 1)
            for n, (address, length, flags) in enumerate(buffers)
        )
        return self.allocate(len(packed), packed), len(packed), INDIRECT

    def offer(self, buffers: Sequence[tuple[int, int, int]]) -> int:
        """Make a chain of (address, length, flags) available and return its head."""
        taken = [self._free.pop(0) for _ in buffers]
        for n, (address, length, flags) in enumerate(buffers):
            more = n + 1 < len(buffers)
            following = taken[n + 1] if more else 0
            self.describe(taken[n], address, length, flags | (NEXT if more else 0), following)
        self._chains[taken[0]] = taken
        self.make_available(taken[0])
        return taken[0]

    def make_available(self, head: int) -> None:
        """Put a head into the available ring."""
        index = self._get(self.available + 2)
        self._put(self.available + 4 + 2 * (index % self.size), head)
        self._put(self.available + 2, index + 1)

    def skip_available(self, count: int) -> None:
        self._put(self.available + 2, self._get(self.available + 2) + count)

    def collect(self) -> list[tuple[int, int]]:
        """Return (head, bytes written) of each chain given back since the last time."""
        done = []
        while self.seen != self._get(self.used + 2):
            at = self.used + 4 + 8 * (self.seen % self.size)
            head, written = struct.unpack_from("<II", self.memory, at)
            self._free += self._chains.pop(head)
            self.seen = (self.seen + 1) & 0xFFFF
            done.append((head, written))
        if self.event_idx:
            self.want_call_after(self.seen)
        return done

    def want_calls(self, *, wanted: bool) -> None:
        """Set the flag that suppresses calls (no effect under EVENT_IDX)."""
        self._put(self.available, 0 if wanted else 1)

    def want_call_after(self, index: int) -> None:
        """Ask to be called once `used.idx` passes an index (EVENT_IDX)."""
        self._put(self.available + 4 + 2 * self.size, index)

    def wants_kick(self) -> bool:
        """Whether adding one more chain must be told: as Linux decides it."""
        if self.event_idx:
            return self._get(self.used + 4 + 8 * self.size) == self._get(self.available + 2)
        return not self._get(self.used) & 1

    def _get(self, at: int) -> int:
        return int(struct.unpack_from("<H", self.memory, at)[0])

    def _put(self, at: int, value: int) -> None:
        struct.pack_into("<H", self.memory, at, value & 0xFFFF)
