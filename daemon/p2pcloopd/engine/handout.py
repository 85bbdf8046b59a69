"""What only one has of those who want the same: it hands out each piece once, over HTTP.

Everybody asks it for any of what is expected and no other peer has, in the order in which it is
expected, and is given what nobody else was given; the rest comes from the others. So a piece
crosses its link once, the next that a guest needs first, and whoever is quick gets more of them
(docs/scheduling.md).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.mirror import MAX_CANDIDATES
from p2pcloopd.engine.direct import PAUSE_SECONDS
from p2pcloopd.engine.peers import Peers
from p2pcloopd.engine.transfer import Transfer

AT_ONCE = 8
"""Handouts that all of a crowd ask for at once, each for one at least. More would only wait in the
queue of a slow link, where each is on a connection of its own and short of what TCP needs to go on
after a loss."""

MOST = 4
"""That one asks for at once."""

AGAIN_SECONDS = 0.1
"""After so long it is asked again where all that it was asked for went to others."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A piece that was handed out.

    Attributes:
        data: not verified.
        hosts: addresses of whoever did.
        refuse: tells that it is wrong: whoever did is not asked again.
    """

    piece: int
    data: bytes
    hosts: frozenset[str]
    refuse: Callable[[], None]


Ask = Callable[[Sequence[int], int], Awaitable[Handed | None]]
"""Asks for one of these pieces, of at most so many bytes; None where others got them all."""


class Handouts:
    """What is handed out of one torrent.

    Attributes:
        ask: asks for it; None where nobody can be asked.
        hosts: who hands out; empty until somebody did.
    """

    def __init__(self, transfer: Transfer, peers: Peers) -> None:
        self.ask: Ask | None = None
        self.hosts: frozenset[str] = frozenset()
        self._transfer = transfer
        self._peers = peers
        self._not_before = -math.inf
        self._wanted: Sequence[int] = ()
        self._at_once = 0
        self._some = trio.Event()

    def ready(self) -> bool:
        """Whether somebody can be asked, as far as is known."""
        return self.ask is not None and trio.current_time() >= self._not_before

    @property
    def busy(self) -> bool:
        """Whether something is to be asked for."""
        return bool(self._wanted)

    def want(self, pieces: Sequence[int], crowd: int) -> None:
        """Ask for these from now on, and for nothing else; the first is wanted most.

        Args:
            crowd: how many want the same.
        """
        fresh = not set(pieces).issubset(self._wanted)
        self._wanted, self._at_once = pieces, max(1, AT_ONCE // crowd)
        if fresh:
            self._some.set()
            self._some = trio.Event()

    def pause(self) -> None:
        """Ask nobody for a while: what is handed out does not come."""
        self._not_before = trio.current_time() + PAUSE_SECONDS
        self._wanted = ()
        self.hosts = frozenset()
        self._transfer.notify()

    async def run(self) -> None:
        """Ask for what is wanted, for ever."""
        async with trio.open_nursery() as nursery:
            for number in range(MOST):
                nursery.start_soon(self._work, number)

    async def _work(self, number: int) -> None:
        while True:
            left = [piece for piece in self._wanted if piece in self._transfer.pieces]
            if self.ask is None or not left or number >= self._at_once:
                await self._some.wait()
                continue
            try:
                size = self._transfer.stored.layout.piece_length
                handed = await self.ask(left[:MAX_CANDIDATES], size)
            except P2pcloopError:
                self.pause()
                continue
            if handed is None:
                with trio.move_on_after(AGAIN_SECONDS):
                    await self._some.wait()
            elif not self._take(handed):
                handed.refuse()
                self.pause()

    def _take(self, handed: Handed) -> bool:
        """Hand a piece over; whether it is right."""
        layout = self._transfer.stored.layout
        if handed.piece >= layout.pieces:
            return False
        self._transfer.received.on_range(
            handed.piece * layout.piece_length, len(handed.data), layout.piece_length
        )
        if not self._transfer.on_piece_brought(handed.piece, handed.data):
            return False
        self.hosts = handed.hosts
        self._peers.on_bytes(len(handed.data))
        return True
