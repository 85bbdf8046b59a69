"""How much each peer is asked for at once: all that is wanted, but for where others want it too.

Alone, a reader is served soonest whose requests are all out. In a crowd a piece that was asked of
the one who has all would come from there, although another peer has it meanwhile.
"""

from __future__ import annotations

from typing import Any

import libtorrent as lt

from p2pcloopd.engine.settings import ALONE, CROWD


class Crowd:
    """The torrents of a session that others want at the same time."""

    def __init__(self, session: lt.session) -> None:
        self._session = session
        self._crowded: set[bytes] = set()

    def of(self, info_hash: bytes, *, on: bool) -> None:
        """Note whether others want a torrent."""
        before = bool(self._crowded)
        if on:
            self._crowded.add(info_hash)
        else:
            self._crowded.discard(info_hash)
        if bool(self._crowded) != before:
            settings: Any = CROWD if self._crowded else ALONE
            self._session.apply_settings(settings)
