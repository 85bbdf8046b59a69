"""Which pieces this node dispatched lately: the clients of a crowd are given different ones.

Clients that boot an image together have what they lack from one another. So a piece that one of
them was given is not given to the next. The node tells clients apart by nothing, and nothing
depends on it: a client that does not get a piece from the others in time asks for it by its range.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import trio

KEPT_SECONDS = 5.0
"""So long a dispatched piece is on its way to all others; then it counts as lost, if they ask."""


class DispatchLog:
    """Pieces by torrent, the one that was dispatched last at the end."""

    def __init__(self) -> None:
        self._given: OrderedDict[tuple[bytes, int], float] = OrderedDict()
        self._being_read: set[tuple[bytes, int]] = set()

    @contextmanager
    def choose(self, info_hash: bytes, pieces: Iterable[int]) -> Iterator[int | None]:
        """The first of pieces that no client was given just now; None where all were.

        It counts as given from the end of the context on, if that ends well: a piece that cannot be
        read is withheld from no client.
        """
        now = trio.current_time()
        while self._given and next(iter(self._given.values())) <= now - KEPT_SECONDS:
            self._given.popitem(last=False)
        keys = ((info_hash, piece) for piece in pieces)
        key = next((k for k in keys if k not in self._given and k not in self._being_read), None)
        if key is None:
            yield None
            return
        self._being_read.add(key)
        try:
            yield key[1]
            self._given[key] = trio.current_time()
        finally:
            self._being_read.remove(key)
