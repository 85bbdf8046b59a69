"""Sets of numbers below a limit, of one bit a number."""

from __future__ import annotations


class Bits:
    """A set of numbers from 0 up to a limit.

    Attributes:
        count: how many are in it.
    """

    def __init__(self, limit: int) -> None:
        """Make an empty set. Its memory, a byte for 8 numbers, is allocated with the first one."""
        self.count = 0
        self._limit = limit
        self._bits = bytearray()

    def add(self, number: int) -> bool:
        """Add a number; return False if it was there already."""
        if not self._bits:
            self._bits = bytearray((self._limit + 7) // 8)
        if number in self:
            return False
        self._bits[number >> 3] |= 0x80 >> (number & 7)
        self.count += 1
        return True

    def __contains__(self, number: int) -> bool:
        at = number >> 3
        return 0 <= at < len(self._bits) and bool(self._bits[at] & (0x80 >> (number & 7)))

    def to_bytes(self) -> bytes:
        """One bit a number, most significant bit first."""
        return bytes(self._bits) or bytes((self._limit + 7) // 8)
