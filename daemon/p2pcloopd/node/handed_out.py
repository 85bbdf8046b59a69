"""Which pieces this node handed out lately: many who want the same get different ones.

Those who boot an image together have what they lack from one another, so what one of them was given
is not given to the next. Nobody is known by name, and nothing depends on it: who does not get a
piece from the others in time asks for it by its range.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import trio

KEPT_SECONDS = 5.0
"""So long a piece that was handed out is on its way to all others; then it is lost, if they ask."""


class HandedOut:
    """Pieces by torrent, the one that was handed out last at the end."""

    def __init__(self) -> None:
        self._given: OrderedDict[tuple[bytes, int], float] = OrderedDict()

    def choose(self, info_hash: bytes, pieces: Iterable[int]) -> int | None:
        """The first of pieces that nobody was given just now; None where all were."""
        now = trio.current_time()
        while self._given and next(iter(self._given.values())) <= now - KEPT_SECONDS:
            self._given.popitem(last=False)
        for piece in pieces:
            if (info_hash, piece) not in self._given:
                self._given[info_hash, piece] = now
                return piece
        return None
