"""Ranges of bytes that do not overlap, in order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

Range = tuple[int, int]
"""Offset and length, in bytes of a torrent's content; at least one byte."""


class Ranges:
    """Disjoint ranges. Neighbours are not joined.

    Attributes:
        size: bytes of all of them.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._lengths: dict[int, int] = {}
        self.size = 0

    def __iter__(self) -> Iterator[Range]:
        return ((start, self._lengths[start]) for start in self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, offset: int, length: int) -> None:
        """Add a range that overlaps none.

        Raises:
            ValueError: it overlaps one, or it is empty.
        """
        if length < 1 or self.overlapping(offset, length):
            raise ValueError(f"bytes {offset} to {offset + length} cannot be added")
        insort(self._starts, offset)
        self._lengths[offset] = length
        self.size += length

    def remove(self, offset: int) -> None:
        """Remove the range that begins here."""
        self.size -= self._lengths.pop(offset)
        del self._starts[bisect_left(self._starts, offset)]

    def clear(self) -> None:
        """Remove all."""
        self._starts.clear()
        self._lengths.clear()
        self.size = 0

    def overlapping(self, offset: int, length: int) -> list[Range]:
        """The ranges that share a byte with this one, in order."""
        first = max(0, bisect_right(self._starts, offset) - 1)
        starts = self._starts[first : bisect_left(self._starts, offset + length)]
        found = ((start, self._lengths[start]) for start in starts)
        return [each for each in found if sum(each) > offset]

    def overlaps(self, offset: int, length: int) -> bool:
        """Whether any does: `overlapping`, without a list of them."""
        after = bisect_right(self._starts, offset)
        if after and (start := self._starts[after - 1]) + self._lengths[start] > offset:
            return True
        return after < len(self._starts) and self._starts[after] < offset + length

    def next(self, offset: int) -> Range | None:
        """The first that begins here or later."""
        at = bisect_left(self._starts, offset)
        if at == len(self._starts):
            return None
        return self._starts[at], self._lengths[self._starts[at]]

    def gaps(self, offset: int, length: int) -> list[Range]:
        """The gaps: the parts of a range that lie in none of them, in order."""
        found, end = [], offset + length
        for start, size in self.overlapping(offset, length):
            if offset < start:
                found.append((offset, start - offset))
            offset = start + size
        if offset < end:
            found.append((offset, end - offset))
        return found
