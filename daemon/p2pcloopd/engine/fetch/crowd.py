"""The other clients of a torrent, and which client asks the seeder for which piece.

Without a dispatcher, clients share out what only a complete seeder has, without a word, by
rendezvous hashing: each host draws a number from the piece and its address, and the highest has it
(Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996). Hosts that see
themselves under another address than others do (NAT) draw as if at random.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from p2pcloopd.engine.fetch.swarm import Others, Swarm
from p2pcloopd.engine.fetch.tuning import Tuning


class Crowd:
    """The connected peers that have not all of the torrent.

    Attributes:
        others: they, as they were seen last; none where there is no crowd.
        copies: how many of them have each piece; empty where that is not known yet.
    """

    def __init__(self, swarm: Swarm, tuning: Tuning) -> None:
        self.others = Others()
        self.copies: Sequence[int] = ()
        self._swarm = swarm
        self._tuning = tuning
        self._expected_at = self._others_at = self._copies_at = -math.inf
        self._mine: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self.others.hosts)

    def look(self, now: float, *, expecting: bool) -> None:
        """See who is there and what they have, as often as is worth it.

        Args:
            expecting: something is read ahead; a crowd lasts a while longer.
        """
        if expecting:
            self._expected_at = now
        if now >= self.ends_at:
            self._set(Others())
            self._others_at = -math.inf
        elif expecting and now - self._others_at >= self._tuning.look_others:
            self._set(self._swarm.others())
            self._others_at = now
        if self.others.hosts and now - self._copies_at >= self._tuning.look:
            self.copies, self._copies_at = self._swarm.copies(), now

    @property
    def ends_at(self) -> float:
        """When it is a crowd no more, unless something is read ahead before."""
        return self._expected_at + self._tuning.crowd_linger

    def _set(self, others: Others) -> None:
        if others != self.others:
            self.others = others
            self._mine.clear()

    def mine(self, piece: int) -> bool:
        """Whether this node is the one to ask a complete seeder for a piece."""
        found = self._mine.get(piece)
        if found is None:
            theirs = max(_draw(piece, host) for host in self.others.hosts)
            found = self._mine[piece] = theirs <= _draw(piece, self.others.here)
        return found


def _draw(piece: int, host: str) -> bytes:
    return hashlib.blake2b(f"{piece} {host}".encode(), digest_size=8).digest()
