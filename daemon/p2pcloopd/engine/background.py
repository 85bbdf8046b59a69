"""A window of the pieces of a torrent of which somebody wants all, whenever that is."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from itertools import chain, islice


class Background:
    """Chooses them, in batches: a call to libtorrent for each piece would cost more.

    Attributes:
        users: how many want all.
        asked: what was asked for and has not come.
    """

    def __init__(self) -> None:
        self.users = 0
        self.asked: set[int] = set()
        self._scan: Iterator[int] = iter(())

    def forget(self) -> set[int]:
        """Begin anew; return what was asked for."""
        asked, self.asked = self.asked, set()
        self._scan = iter(())
        return asked

    def choose(self, window: int, pieces: int, has: Callable[[int], bool]) -> list[int]:
        """Note and return what is to be asked for besides, of `window` pieces at once.

        Args:
            pieces: how many there are.
            has: whether one is here.
        """
        if len(self.asked) > window // 2:
            return []
        room = window - len(self.asked)
        fresh = list(islice(self._scan, room))
        if not fresh and not self.asked:
            self._scan = _absent(pieces, has)
            fresh = list(islice(self._scan, room))
        self.asked.update(fresh)
        return fresh


def _absent(pieces: int, has: Callable[[int], bool]) -> Iterator[int]:
    """Go once through the pieces that are not here when they are come to.

    From anywhere on: so those who fetch the same at once have something to give each other.
    """
    start = secrets.randbelow(pieces)
    for piece in chain(range(start, pieces), range(start)):
        if not has(piece):
            yield piece
