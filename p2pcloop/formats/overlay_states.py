"""The state table of an overlay: one byte for each block of the device, kept in memory.

A state has a byte, not two bits: so a run of states is a slice, compared at the speed of C. A
device of 1 TiB would take 256 MiB. To save memory, a page (4096 states) of one state is kept as
that state, the pages used last are kept plainly, and all others are compressed.
"""

from __future__ import annotations

import enum
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from p2pcloop.errors import FormatError
from p2pcloop.formats.overlay_header import PAGE_SIZE
from p2pcloop.words import tr

LOAD_SIZE = 1 << 20
"""Bytes of the table that are read together; whole pages."""

MAX_HOT_PAGES = 1024
"""Pages that are kept plainly: 4 MiB, the states of 16 GiB."""


class State(enum.IntEnum):
    """The place of a block's content; the value is its byte in the state table.

    Any two values differ in at least two bits, so that a flipped bit is noticed when it is read.
    """

    ABSENT = 0
    """Not in the overlay: the image below has it."""
    DATA = ord("D")
    """In the overlay's file, at its place."""
    ZERO = ord("Z")
    """Discarded or written as zeros: it reads as zeros, and the bytes at its place do not count."""


Run: TypeAlias = tuple[int, int, State]
"""First block, number of blocks, and their common state."""

_STATES = {int(state): state for state in State}
_FULL_PAGE = {state: bytes([state]) * PAGE_SIZE for state in State}
_RUN = re.compile(rb"\0+|D+|Z+")
_NO_STATE = re.compile(rb"[^\0DZ]")
_MIXED = 1
"""The mark of a page whose blocks have several states."""


def pack_page(page: bytes | bytearray) -> bytes:
    """Compress a page: 15 µs, and 20 to 800 bytes."""
    return zlib.compress(page, 1)


def unpack_page(packed: bytes) -> bytes:
    """Return the page that was packed: 8 µs."""
    return zlib.decompress(packed)


_PACKED_FULL_PAGE = {state: pack_page(page) for state, page in _FULL_PAGE.items()}


class StateTable:
    """States of `count` blocks, all absent at first, and which pages of the table have changed."""

    def __init__(self, count: int, size: int) -> None:
        """Make a table of `size` bytes (whole pages), of which the first `count` are in use."""
        self.count = count
        self.size = size
        # For each page the state of all its blocks, or _MIXED: then it is in one of the next two.
        self._whole = bytearray(size // PAGE_SIZE)
        self._hot: OrderedDict[int, bytearray] = OrderedDict()
        self._cold: dict[int, bytes] = {}
        self._dirty: set[int] = set()

    def load(self, start: int, part: bytearray) -> None:
        """Take whole pages of the table from the file; they do not count as changed.

        Raises:
            FormatError: one of them is no state, or lies past the last block and is not 0.
        """
        if part.count(0) == len(part):
            return
        if (wrong := _NO_STATE.search(part)) is not None:
            raise FormatError(tr("block {start} has no valid state", start=start + wrong.start()))
        if any(part[max(0, self.count - start) :]):
            raise FormatError("it has states past its last block")
        for at in range(0, len(part), PAGE_SIZE):
            self._cool((start + at) // PAGE_SIZE, part[at : at + PAGE_SIZE])

    def __getitem__(self, block: int) -> State:
        """Return the state of one block."""
        ((_, _, state),) = self.runs(block, 1)
        return state

    def runs(self, first: int, count: int) -> Sequence[Run]:
        """Cut `count` blocks (at least 1, inside the device) into runs of one state, in order."""
        page, last = first // PAGE_SIZE, (first + count - 1) // PAGE_SIZE
        whole = self._whole[page]
        if whole != _MIXED and (page == last or self._all(page, last + 1, whole)):
            return ((first, count, _STATES[whole]),)
        at = first - page * PAGE_SIZE
        if page == last:
            part = self._mixed(page)[at : at + count]
        else:
            part = bytearray().join(self._pages(page, last + 1))[at : at + count]
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
            page, at = divmod(first, PAGE_SIZE)
            length = min(end - first, PAGE_SIZE - at)
            if self._whole[page] == state:
                any_present = any_present or state is not State.ABSENT
            else:
                present = self._set_in_page(page, at, length, state)
                any_present = any_present or present
            first += length
        return any_present

    def take_changed(self) -> dict[int, bytes]:
        """Return the pages changed since the last call, packed, by page number."""
        pages = {page: self._packed(page) for page in self._dirty}
        self._dirty.clear()
        return pages

    def tally(self) -> dict[State, int]:
        """Count the blocks in each state."""
        counts = {state: self._whole.count(state) * PAGE_SIZE for state in State}
        for number, whole in enumerate(self._whole):
            if whole == _MIXED:
                page = self._look(number)
                for state in (State.DATA, State.ZERO):
                    counts[state] += page.count(state)
        counts[State.ABSENT] = self.count - counts[State.DATA] - counts[State.ZERO]
        return counts

    def _set_in_page(self, number: int, at: int, length: int, state: State) -> bool:
        """Set states of one page; True if any of them was not absent."""
        if length == PAGE_SIZE:
            present = self._look(number).count(0) < PAGE_SIZE
            self._hot.pop(number, None)
            self._cold.pop(number, None)
            self._whole[number] = state
            self._dirty.add(number)
            return present
        page = self._mixed(number)
        wanted, found = _FULL_PAGE[state][:length], page[at : at + length]
        if found != wanted:
            page[at : at + length] = wanted
            self._dirty.add(number)
        return found.count(0) < length

    def _all(self, first: int, last: int, state: int) -> bool:
        return self._whole.count(state, first, last) == last - first

    def _pages(self, first: int, last: int) -> Iterator[bytes | bytearray]:
        for number in range(first, last):
            yield self._look(number)

    def _mixed(self, number: int) -> bytearray:
        """A page to be read or changed; it becomes one of those used last."""
        page = self._hot.get(number)
        if page is not None:
            self._hot.move_to_end(number)
            return page
        page = bytearray(self._look(number))
        self._cold.pop(number, None)
        self._whole[number] = _MIXED
        self._hot[number] = page
        if len(self._hot) > MAX_HOT_PAGES:
            self._cool(*self._hot.popitem(last=False))
        return page

    def _look(self, number: int) -> bytes | bytearray:
        """The states of a page, not to be changed."""
        whole = self._whole[number]
        if whole != _MIXED:
            return _FULL_PAGE[_STATES[whole]]
        page = self._hot.get(number)
        return unpack_page(self._cold[number]) if page is None else page

    def _packed(self, number: int) -> bytes:
        whole = self._whole[number]
        if whole != _MIXED:
            return _PACKED_FULL_PAGE[_STATES[whole]]
        page = self._hot.get(number)
        return self._cold[number] if page is None else pack_page(page)

    def _cool(self, number: int, page: bytearray) -> None:
        """Keep a page in the smallest form."""
        if page.count(page[0]) == PAGE_SIZE:
            self._whole[number] = page[0]
        else:
            self._whole[number] = _MIXED
            self._cold[number] = pack_page(page)
