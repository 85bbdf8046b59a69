"""The places of a file's bytes in another file: a file on a CD image, of one or more extents."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate


class Extents:
    """The stretches of an outer file that an inner one consists of, in order.

    Attributes:
        size: bytes of the inner file.
    """

    def __init__(self, extents: Iterable[tuple[int, int]]) -> None:
        """Take offset and length in bytes of each extent; neighbours are joined."""
        joined: list[tuple[int, int]] = []
        for offset, length in extents:
            if joined and sum(joined[-1]) == offset:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            elif length:
                joined.append((offset, length))
        self._extents = tuple(joined)
        self._starts = [0, *accumulate(length for _, length in joined)]
        self.size = self._starts[-1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Extents) and self._extents == other._extents

    def __hash__(self) -> int:
        return hash(self._extents)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._extents)

    def __len__(self) -> int:
        """The number of stretches; no two are neighbours."""
        return len(self._extents)

    def __repr__(self) -> str:
        return f"Extents({list(self._extents)})"

    @property
    def start(self) -> int:
        """The offset of the inner file's first byte in the outer one."""
        return self._extents[0][0] if self._extents else 0

    @property
    def end(self) -> int:
        """The offset behind the last byte in the outer file."""
        return max((offset + length for offset, length in self._extents), default=0)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Read from the inner file as pread(2) does; fewer bytes only at the end of a file.

        Args:
            fd: of the outer file.
            length, offset: of the inner one.

        Raises:
            OSError: the system refused.
        """
        parts = []
        index = bisect_right(self._starts, offset) - 1
        while length > 0 and index < len(self._extents):
            within = offset - self._starts[index]
            outer, available = self._extents[index]
            data = _pread(fd, min(length, available - within), outer + within)
            parts.append(data)
            if len(data) < min(length, available - within):
                break
            offset += len(data)
            length -= len(data)
            index += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _pread(fd: int, length: int, offset: int) -> bytes:
    """Call pread(2) until all bytes are read or the file ends."""
    data = os.pread(fd, length, offset)
    while (
        data
        and len(data) < length
        and (more := os.pread(fd, length - len(data), offset + len(data)))
    ):
        data += more
    return data
