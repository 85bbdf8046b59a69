"""Fills a list of memoryviews with stretches whose borders need not be those of the views."""

from __future__ import annotations

from collections.abc import Sequence

ZEROS = memoryview(bytes(1 << 20))


class Scatter:
    """A position in a list of views (writable, one byte an item); it moves as they are filled."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = views
        self._index = 0
        self._position = 0

    def take(self, length: int) -> list[memoryview]:
        """Return views of the next `length` bytes, for the caller to fill."""
        taken = []
        while length:
            view = self._views[self._index]
            part = view[self._position : self._position + length]
            taken.append(part)
            length -= len(part)
            self._position += len(part)
            if self._position == len(view):
                self._index += 1
                self._position = 0
        return taken

    def put(self, data: memoryview) -> None:
        """Fill the next `len(data)` bytes."""
        at = 0
        for view in self.take(len(data)):
            view[:] = data[at : at + len(view)]
            at += len(view)

    def zero(self, length: int) -> None:
        """Fill the next `length` bytes with zeros."""
        for view in self.take(length):
            for at in range(0, len(view), len(ZEROS)):
                part = view[at : at + len(ZEROS)]
                part[:] = ZEROS[: len(part)]
