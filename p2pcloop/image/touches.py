"""Recording the blocks of an image that a boot reads first, and when: its profile."""

from __future__ import annotations

import time
from collections.abc import Callable

from p2pcloop.formats.profile import MAX_TOUCHES

MAX_SECONDS = 300.0
"""A boot is over by then; later reads say nothing about it."""

MAX_FOUND = 4 * MAX_TOUCHES
"""More than a profile holds. A desktop that goes on touches 10,000 single pages until it has
answered; by address they are a third as many runs (`by_address`)."""

_REGION_BITS = 18
_REGION = 1 << _REGION_BITS
"""Blocks (1 GiB) whose touches share an array, so that a large device takes memory only for the
parts that are read."""


class Touches:
    """The first touches of a device, for the longest time that a boot may take.

    Attributes:
        found: (first block, blocks, time as of `clock`), in order.
        noting: whether touches are noted still.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.found: list[tuple[int, int, float]] = []
        self.noting = True
        self._clock = clock
        self._regions: dict[int, bytearray] = {}

    def record(self, first: int, count: int) -> None:
        """Note that `count` (at least 1) blocks from `first` on are read."""
        last = first + count
        while first < last:
            end = min(last, (first | (_REGION - 1)) + 1)
            self._record(first >> _REGION_BITS, first & (_REGION - 1), end - first)
            first = end

    def _record(self, number: int, first: int, count: int) -> None:
        seen = self._regions.get(number)
        if seen is None:
            seen = self._regions[number] = bytearray(_REGION)
        last = first + count
        at = seen.find(0, first, last)
        while at >= 0:
            end = seen.find(1, at, last)
            end = last if end < 0 else end
            seen[at:end] = b"\1" * (end - at)
            self._add((number << _REGION_BITS) + at, end - at)
            at = seen.find(0, end, last)

    def _add(self, first: int, count: int) -> None:
        now = self._clock()
        if not self.found:
            self.found.append((first, count, now))
            return
        if now - self.found[0][2] > MAX_SECONDS:
            self._end()
            return
        start, blocks, at = self.found[-1]
        if start + blocks == first:
            self.found[-1] = (start, blocks + count, at)
        elif len(self.found) < MAX_FOUND:
            self.found.append((first, count, now))
        else:
            self._end()

    def _end(self) -> None:
        self.noting = False
        self._regions.clear()
