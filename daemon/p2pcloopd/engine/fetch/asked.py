"""What libtorrent was told to fetch, and which of it a peer was asked for.

libtorrent asks peers on a thread of its own, whenever they take requests, and its news come when
this thread has time for them. So "was a peer asked for this piece?" is answered together with all
news until then: a piece that is neither in the answer nor in the store comes from no peer. Else a
server would be asked once more for what a peer has just sent.

A piece of which libtorrent was told no more comes all the same, where a peer was asked for it.
"""

from __future__ import annotations

from collections.abc import Collection

from p2pcloopd.engine.fetch.swarm import Priority, Swarm


class Asked:
    """Of one torrent, since its swarm was joined."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._told: set[int] = set()
        self._let_go: set[int] = set()

    def tell(self, pieces: Collection[int], priority: Priority) -> None:
        """Tell libtorrent how urgently pieces are wanted, or no more of them: `IDLE`."""
        if priority is Priority.IDLE:
            self._let_go.update(self._told.intersection(pieces))
            self._told.difference_update(pieces)
        else:
            self._let_go.difference_update(pieces)
            self._told.update(pieces)
        self._swarm.prioritize(pieces, priority)

    def requested(self) -> set[int]:
        """The pieces that a peer was asked for. What peers sent whole is in the store by then, and
        others may have become wanted no more: libtorrent's news were heard."""
        if not (self._told or self._let_go):
            return set()
        requested = self._swarm.requested()
        self._let_go &= requested
        return requested

    def of_peers(self, pieces: Collection[int]) -> set[int]:
        """Those of some pieces; see `requested`."""
        if self._told.isdisjoint(pieces) and self._let_go.isdisjoint(pieces):
            return set()
        return self.requested().intersection(pieces)

    def arrived(self, piece: int) -> None:
        """Note that a piece is whole."""
        self._told.discard(piece)
        self._let_go.discard(piece)

    def clear(self) -> None:
        """Note that the swarm is left or joined anew: libtorrent was told of nothing."""
        self._told.clear()
        self._let_go.clear()
