"""Turns libtorrent's end-game on only while a peer keeps a reader waiting.

A torrent that is read on demand would always be in it: all that is wanted is asked for at once, so
every idle peer would be asked for the same blocks, and most would have sent them before the
cancellation comes. `strict_end_game_mode` rules that out while fewer pieces are on their way than
are wanted and absent (request_blocks.cpp), and libtorrent counts pieces that are here with priority
0 among the latter (piece_picker.hpp, `num_want_left`). So it is on, what is here is `IDLE`, and it
is turned off for a while where a peer keeps a reader waiting (findings/libtorrent-end-game.sh).
"""

from __future__ import annotations

import math

import libtorrent as lt
import trio


class EndGame:
    """The end-game of a session: for no torrent, or for all of them."""

    def __init__(self, session: lt.session) -> None:
        self._session = session
        self._until = -math.inf
        self._on = False

    def insist(self, seconds: float) -> None:
        """Have it for so long from now."""
        self._until = trio.current_time() + seconds
        self._turn(on=True)

    def lapse(self) -> None:
        """End it when its time is over."""
        if trio.current_time() >= self._until:
            self._turn(on=False)

    def _turn(self, *, on: bool) -> None:
        if on != self._on:
            self._on = on
            self._session.apply_settings({"strict_end_game_mode": not on})
