"""The state table of an overlay: one byte for each block of the device, kept in memory.

A byte and not two bits: a run of states is then a slice, found and compared at the speed of C; the
table of a 600 MB image is 150 KB, of which only pages in use take memory.
"""

from __future__ import annotations

import enum
import mmap
import re
from collections.abc import Sequence
from typing import TypeAlias

from p2pcloop.errors import FormatError
from p2pcloop.formats.overlay_header import PAGE_SIZE

LOAD_SIZE = 1 << 20
"""Bytes of the table that are looked at together."""


class State(enum.IntEnum):
    """Where a block's content is; the value is its byte in the state table.

    Any two differ in at least two bits, so that one flipped bit is noticed when it is loaded.
    """

    ABSENT = 0
    """Nothing here: the image below has it."""
    DATA = ord("D")
    """In the overlay's file, at its place."""
    ZERO = ord("Z")
    """Discarded or written as zeros: reads as zeros, whatever is at its place."""


Run: TypeAlias = tuple[int, int, State]
"""First block, number of blocks, and the state that they all have."""

_STATES = {int(state): state for state in State}
_FULL_PAGE = {state: bytes([state]) * PAGE_SIZE for state in State}
_RUN = re.compile(rb"\0+|D+|Z+")
_NO_STATE = re.compile(rb"[^\0DZ]")


class StateTable:
    """States of `count` blocks, all absent at first, and which pages of the table have changed."""

    def __init__(self, count: int, size: int) -> None:
        """Make a table of `size` bytes (whole pages), of which the first `count` are in use."""
        self.count = count
        self.size = size
        # Private anonymous memory: what is never written takes no room, however large the image.
        self._bytes = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._dirty: set[int] = set()

    def load(self, start: int, part: bytearray) -> None:
        """Take bytes of the table from the file; they do not count as changed.

        Raises:
            FormatError: one of them is no state, or lies past the last block and is not 0.
        """
        if part.count(0) == len(part):
            return
        if (wrong := _NO_STATE.search(part)) is not None:
            raise FormatError(f"block {start + wrong.start()} has no valid state")
        if any(part[max(0, self.count - start) :]):
            raise FormatError("it has states past its last block")
        self._bytes[start : start + len(part)] = bytes(part)

    def __getitem__(self, block: int) -> State:
        """Tell one block's state."""
        return _STATES[self._bytes[block]]

    def runs(self, first: int, count: int) -> Sequence[Run]:
        """Cut `count` blocks (at least 1, inside the device) into runs of one state, in order."""
        part = self._bytes[first : first + count]
        if part.count(part[0]) == count:
            return ((first, count, _STATES[part[0]]),)
        return [
            (first + run.start(), run.end() - run.start(), _STATES[part[run.start()]])
            for run in _RUN.finditer(part)
        ]

    def set(self, first: int, count: int, state: State) -> bool:
        """Set the state of a run and note the pages that changed; True if any was not absent."""
        end, any_present = first + count, False
        while first < end:
            page = first // PAGE_SIZE
            stop = min(end, (page + 1) * PAGE_SIZE)
            wanted, found = _FULL_PAGE[state][: stop - first], self._bytes[first:stop]
            any_present = any_present or found.count(0) < len(found)
            if found != wanted:
                self._bytes[first:stop] = wanted
                self._dirty.add(page)
            first = stop
        return any_present

    def take_changed(self) -> dict[int, bytes]:
        """Return copies of the pages changed since the last call, by page number."""
        pages = {
            page: self._bytes[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] for page in self._dirty
        }
        self._dirty.clear()
        return pages

    def tally(self) -> dict[State, int]:
        """Count the blocks in each state."""
        counts = dict.fromkeys(State, 0)
        for start in range(0, self.size, LOAD_SIZE):
            part = self._bytes[start : start + LOAD_SIZE]
            for state in (State.DATA, State.ZERO):
                counts[state] += part.count(state)
        counts[State.ABSENT] = self.count - counts[State.DATA] - counts[State.ZERO]
        return counts
