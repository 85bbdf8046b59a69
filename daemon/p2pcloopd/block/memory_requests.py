"""The requests of a memory file that are not answered yet, in memory that outlives a worker.

The kernel forgets a request once it has been read from /dev/fuse: it waits for the answer, and
asks no other worker. So a worker reads each request into a slot of a table that its successor has,
too: there is no instant at which a request is neither the kernel's nor in the table. A slot is in
use while its first word is not 0. In a request this is its length.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from p2pcloop.protocol import fuse

SLOTS: Final = 1024
"""Requests that wait at once. A thread has one under way, so QEMU has no more than its threads; a
reader of its own making that has more waits until one is answered."""

SLOT_SIZE: Final = 128
"""Bytes of a request that are kept: all of a READ. Of a longer one the rest is lost with the
worker, and its reader is told of an error."""

_FREE: Final = bytes(4)

assert SLOT_SIZE >= fuse.READ_SIZE


def make_table() -> int:
    """Return the descriptor of a new table, which has no requests.

    Raises:
        OSError: the system has no memory.
    """
    fd = os.memfd_create("requests", os.MFD_CLOEXEC)
    os.ftruncate(fd, SLOTS * SLOT_SIZE)
    return fd


class RequestTable:
    """A table as one worker uses it, at most one at a time."""

    def __init__(self, fd: int) -> None:
        """Map a table of `make_table`."""
        self._map = mmap.mmap(fd, SLOTS * SLOT_SIZE)
        self._view = memoryview(self._map)
        self._free: list[int] = []
        for number in reversed(range(SLOTS)):
            if not self._is_used(number):
                # Present before a request comes: the kernel fails one for which it has to wait for
                # a page while the worker is being killed.
                self.clear(number)
                self._free.append(number)

    @property
    def is_full(self) -> bool:
        """Whether there is no free slot."""
        return not self._free

    def unanswered(self) -> Iterator[int]:
        """The slots of requests that an earlier worker has left."""
        return (number for number in range(SLOTS) if self._is_used(number))

    def next_free(self) -> int:
        """Return a free slot; it is the same one until `take`. There must be one."""
        return self._free[-1]

    def take(self) -> None:
        """Take note that the slot of `next_free` has a request now."""
        self._free.pop()

    def slot(self, number: int) -> memoryview:
        """The bytes of a slot."""
        return self._view[number * SLOT_SIZE : (number + 1) * SLOT_SIZE]

    def clear(self, number: int) -> None:
        """Make a slot empty, whose request was not received; `release` ends one that was."""
        start = number * SLOT_SIZE
        self._view[start : start + len(_FREE)] = _FREE

    def release(self, number: int) -> None:
        """Free the slot of a request that is answered."""
        self.clear(number)
        self._free.append(number)

    def _is_used(self, number: int) -> bool:
        start = number * SLOT_SIZE
        return self._view[start : start + len(_FREE)] != _FREE

    def close(self) -> None:
        """Use the table no more; its requests stay, and slots that are in use stay mapped."""
        self._view.release()
        with suppress(BufferError):
            self._map.close()
