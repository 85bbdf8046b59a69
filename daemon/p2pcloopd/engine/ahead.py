"""Which of the pieces that readers expect are asked for, and when (docs/scheduling.md).

In their order, a window at a time. Where others want them at the same time, they are spread: what
another peer has is asked for in order; of what only a complete peer has, each asks for its own
share first, so that those who boot together get different pieces of it and have them from each
other. Where that peer hands out (handout.py), it says itself whose share a piece is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import trio

from p2pcloopd.engine.handout import Handouts
from p2pcloopd.engine.peers import Peers
from p2pcloopd.engine.swarm import Others, Swarm
from p2pcloopd.engine.transfer import Transfer

LOOK_SECONDS = 0.05
"""Between two looks at what others have, while something is expected: libtorrent does not tell."""

OTHERS_SECONDS = 0.25
"""Between two looks at who they are."""

LINGER_SECONDS = 5.0
"""A crowd is one until nothing was expected for so long: what its guests read next is the same."""

STALL_SECONDS = 1.0
"""What was asked for stalls where nothing at all comes for so long."""

SHARED = 2 << 20
"""Bytes that are asked for at once of what others have: libtorrent shares them out among these."""

RARE = 4
"""Pieces that are asked for at once of those that only complete peers have: more than libtorrent
asks a peer for in a crowd (settings.py), so that such a peer is asked for nothing else."""


class Ahead:
    """Asks for what is expected of one torrent."""

    def __init__(self, transfer: Transfer, peers: Peers, swarm: Swarm, handout: Handouts) -> None:
        self._transfer = transfer
        self._peers = peers
        self._swarm = swarm
        self._handout = handout
        self._others = Others()
        self._others_at = self._expected_at = -math.inf
        self._copies: list[int] = []
        self._copies_at = -math.inf
        self._shares: dict[int, bool] = {}

    async def run(self) -> None:
        """Keep a window of expected pieces asked for, for ever."""
        while True:
            changed = self._transfer.changed
            self.top_up()
            if not self._under_way():
                with trio.move_on_after(LINGER_SECONDS if self._others.hosts else math.inf):
                    await changed.wait()
                continue
            # Not before something was asked for: libtorrent gives up peers of a torrent that wants
            # nothing when they are connected to.
            with self._peers.needed():
                await self._keep_up()

    async def _keep_up(self) -> None:
        """Ask for more as room comes, until nothing is asked for any more."""
        while self._under_way():
            changed = self._transfer.changed
            self.top_up()
            with trio.move_on_after(LOOK_SECONDS if self._others.hosts else STALL_SECONDS):
                await changed.wait()
            if self._peers.stalled() >= STALL_SECONDS:
                self._transfer.stall(self._asked())
                if self._handout.busy:
                    self._handout.pause()

    def _under_way(self) -> bool:
        """Whether something is asked for that nobody waits for."""
        return bool(self._asked()) or self._handout.busy

    def _asked(self) -> list[int]:
        """What was asked for ahead of its readers and has not come."""
        pieces = self._transfer.pieces
        return [piece for piece in pieces.asked if not pieces.urgent(piece)]

    def top_up(self) -> None:
        """Ask for more where there is room."""
        if self._transfer.disk is None or not self._transfer.running:
            return
        pieces = self._transfer.pieces
        expected = pieces.expected
        self._look(expecting=bool(pieces.wanted if self._transfer.apart else expected))
        alone: list[int] = []
        if self._others.hosts and self._handout.ready():
            wanted = pieces.wanted if self._transfer.apart else expected
            if self._copies:
                alone = [p for p in wanted if not (self._copies[p] or self._transfer.in_part(p))]
            alone.sort(key=pieces.urgent, reverse=True)
        self._handout.want(alone, self._transfer.crowd + 1)
        if expected:
            pieces.ask(self._choose(expected))

    def _choose(self, expected: list[int]) -> list[int]:
        """What to ask for of what is expected and was not asked for."""
        asked = self._asked()
        if self._others.hosts:
            return self._spread(expected, asked)
        size = self._peers.window() // (2 if self._transfer.demand.busy else 1)
        return expected[: max(0, self._pieces(size) - len(asked))]

    def _pieces(self, size: int) -> int:
        """How many pieces so many bytes are, at least 1."""
        return max(1, size // self._transfer.stored.layout.piece_length)

    def _look(self, *, expecting: bool) -> None:
        """Note who else wants the torrent, and what they have of it."""
        now = trio.current_time()
        if expecting:
            self._expected_at = now
        if now - self._expected_at >= LINGER_SECONDS:
            others, self._others_at = Others(), -math.inf
        elif expecting and now - self._others_at >= OTHERS_SECONDS:
            others, self._others_at = self._swarm.others(), now
        else:
            others = self._others
        if others != self._others:
            self._others = others
            self._shares.clear()
            self._transfer.crowd = len(others.hosts)
        # Who hands out need not be asked by BitTorrent, which would ask it for what others have.
        apart = self._handout.hosts.difference(others.hosts) if others.hosts else frozenset()
        self._transfer.apart = bool(apart)
        self._swarm.crowd(on=bool(others.hosts), without=apart)
        if others.hosts and now - self._copies_at >= LOOK_SECONDS:
            self._copies, self._copies_at = self._swarm.copies(), now

    def _spread(self, expected: Sequence[int], asked: Sequence[int]) -> list[int]:
        """Choose what to ask for beside others: much of what they have, and few of the rest."""
        copies = self._copies
        if not copies:
            return []
        shared = [piece for piece in expected if copies[piece]]
        alone = [piece for piece in expected if not copies[piece]]
        if self._transfer.apart:
            # What nobody else has is asked of them, too: they give it as soon as they have it.
            room = self._pieces(self._peers.window()) - sum(copies[piece] > 0 for piece in asked)
            return shared[: max(0, room)] + alone
        if self._handout.ready():
            return shared[: max(0, self._pieces(SHARED) - len(asked))]
        rare = sum(not copies[piece] for piece in asked)
        ours = [piece for piece in alone if not self.is_share_of_others(piece)]
        if not ours and not asked:
            ours = alone  # whoever is to get them first does not
        room = self._pieces(SHARED) - (len(asked) - rare)
        return shared[: max(0, room)] + ours[: max(0, RARE - rare)]

    def is_share_of_others(self, piece: int) -> bool:
        """Whether another peer is to get a piece first: each host draws a number, the highest has
        it (rendezvous hashing). Hosts that are told different addresses draw as if at random."""
        if piece not in self._shares:
            others = max(_draw(piece, host) for host in self._others.hosts)
            self._shares[piece] = others > _draw(piece, self._others.here)
        return self._shares[piece]


def _draw(piece: int, host: str) -> bytes:
    return hashlib.blake2b(f"{piece} {host}".encode(), digest_size=8).digest()
