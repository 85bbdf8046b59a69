"""Limits how much each peer is asked for while other clients fetch the same torrent.

Alone, a reader is served soonest whose requests are all out. In a crowd a piece that was asked of
the complete seeder would come from there, although another peer has it meanwhile. So each is asked
for little; or the seeder is kept out of the swarm, where it is asked over HTTP (fetch/dispatch.py).
"""

from __future__ import annotations

from typing import Any

import libtorrent as lt

from p2pcloopd.engine.bt.settings import ALONE, CROWD

_BLOCKED = 1  # ip_filter::blocked


class PeerLimits:
    """How much the peers of a session are asked for: less while other clients want the same."""

    def __init__(self, session: lt.session) -> None:
        self._session = session
        self._crowded: dict[bytes, frozenset[str]] = {}
        self._settings = ALONE
        self._without: frozenset[str] = frozenset()

    def of(self, info_hash: bytes, *, on: bool, without: frozenset[str]) -> None:
        """Note whether others want a torrent, and which hosts are no peers meanwhile."""
        if on:
            self._crowded[info_hash] = without
        else:
            self._crowded.pop(info_hash, None)
        settings = CROWD if not all(self._crowded.values()) else ALONE
        if settings is not self._settings:
            self._settings = settings
            values: Any = settings
            self._session.apply_settings(values)
        hosts = frozenset().union(*self._crowded.values())
        if hosts != self._without:
            self._without = hosts
            blocked = lt.ip_filter()
            for host in hosts:
                blocked.add_rule(host, host, _BLOCKED)
            self._session.set_ip_filter(blocked)
