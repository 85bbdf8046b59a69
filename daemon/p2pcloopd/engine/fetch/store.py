"""All forms in which bytes of a torrent are here. Every "is it here?" is asked of this.

    durable      pieces whose have bit is set: they serve every client
    arrived      pieces that libtorrent has, and found right; durable within a second or so
    handed       pieces that were given to libtorrent, which is about to say that they arrived
    provisional  bytes of exact ranges, of pieces that are not here (provisional.py)

Nothing of these is asked for again, or received twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import trio

from p2pcloopd.engine.disk.stored import Stored
from p2pcloopd.engine.fetch.demand import Demand
from p2pcloopd.engine.fetch.provisional import Provisional
from p2pcloopd.engine.fetch.received import Received
from p2pcloopd.engine.fetch.senders import Senders
from p2pcloopd.engine.fetch.swarm import Priority, Swarm
from p2pcloopd.engine.fetch.tuning import Tuning
from p2pcloopd.tasks import Pulse


class Store:
    """What is here of one torrent.

    Attributes:
        disk: what is durable, or None until the metadata is known; set by the owner.
        running: whether the swarm is joined; set by fetcher.py.
        provisional: bytes that are here, of pieces that are not.
        received: counts what arrived.
        senders: who sent which piece.
        changed: notified when more or less is here, or something else of the torrent changed.
        compared_since: since when no piece is sent to others that was not compared with its hash.
        suspect: is told of pieces that are here and may be wrong; set by the owner.
    """

    def __init__(
        self, swarm: Swarm, directory: Path, demand: Demand, tuning: Tuning, changed: Pulse
    ) -> None:
        """`directory` is the torrent's in the store."""
        self.disk: Stored | None = None
        self.running = False
        self.changed = changed
        self.provisional = Provisional(directory, demand, self.changed.notify, tuning)
        self.received = Received(self.known)
        self.senders = Senders()
        self.compared_since = -math.inf
        self.suspect: Callable[[Iterable[int]], None] = lambda _pieces: None
        self._swarm = swarm
        self._tuning = tuning
        self._arrived: set[int] = set()
        self._handed: set[int] = set()
        self._dirty = trio.Event()
        self._plenty = trio.Event()
        self._flushed = trio.Event()

    @property
    def stored(self) -> Stored:
        """`disk`, where the metadata is known."""
        assert self.disk is not None, "the metadata is not known yet"
        return self.disk

    # --- is it here? ------------------------------------------------------------------------

    def has(self, piece: int) -> bool:
        """Whether a piece is here, durable or not."""
        return self.stored.have.has(piece, piece) or piece in self._arrived

    def is_durable(self, piece: int) -> bool:
        """Whether a piece can be read from the files."""
        return self.stored.have.has(piece, piece)

    def is_coming(self, piece: int) -> bool:
        """Whether a piece is here, or was given to libtorrent, which is about to say so."""
        return self.has(piece) or piece in self._handed

    def in_part(self, piece: int) -> bool:
        """Whether bytes of a piece are here, or on their way by themselves."""
        return self.provisional.touches(*self.stored.layout.range_of(piece))

    @property
    def arrived(self) -> int:
        """How many pieces are here but not durable yet."""
        return len(self._arrived)

    @property
    def saved(self) -> bool:
        """Whether nothing has arrived, or was given to libtorrent, that is not durable."""
        return not (self._arrived or self._handed)

    def complete(self) -> bool:
        """Whether all pieces are here, durable or not."""
        return self.stored.have.count + self.arrived == self.stored.layout.pieces

    @property
    def have_bytes(self) -> int:
        """Bytes that are here: durable, or arrived and about to be."""
        if self.disk is None or self.disk.fault is not None:
            return 0
        layout = self.disk.layout
        count = self.disk.have.count + self.arrived
        last = self.disk.have.pieces - 1
        # The last piece may be a short one.
        missing = layout.piece_length * (last + 1) - layout.total_size if self.has(last) else 0
        return count * layout.piece_length - missing

    @property
    def provisional_bytes(self) -> int:
        """Bytes that are here of pieces that are not."""
        total = self.provisional.size
        if self.disk is not None:
            for span in self.provisional.ranges:
                spans = self.disk.layout.spans_of(*span)
                total -= sum(size for piece, _, size in spans if self.has(piece))
        return total

    def known(self, offset: int, length: int) -> int:
        """How many bytes of a range are here in whole pieces, or provisional."""
        layout = None if self.disk is None else self.disk.layout
        if layout is None or offset + length > layout.total_size:
            return length - sum(size for _, size in self.provisional.gaps(offset, length))
        known = 0
        for piece, first, size in layout.spans_of(offset, length):
            known += size
            if not self.has(piece):
                known -= sum(lacking for _, lacking in self.provisional.gaps(first, size))
        return known

    # --- changes ----------------------------------------------------------------------------

    def arrive(self, piece: int) -> bool:
        """Note that libtorrent has a piece and found it right; whether that is news.

        News that come while the swarm is left do not count: what is not durable is forgotten.
        """
        if not self.running or self.disk is None or self.is_durable(piece):
            return False
        self._arrived.add(piece)
        self._handed.discard(piece)
        self.received.on_piece(piece)
        self._dirty.set()
        if len(self._arrived) * self.disk.layout.piece_length >= self._tuning.save_bytes:
            self._plenty.set()
        return True

    def hand_over(self, piece: int, data: bytes) -> None:
        """Give libtorrent a piece that did not arrive by it, for the files and for peers."""
        if self.running and not self.is_coming(piece):
            self._handed.add(piece)
            self._swarm.add_piece(piece, data)

    async def handed_fewer(self, most: int) -> None:
        """Return when libtorrent has taken all but so many pieces of what was handed over."""
        while len(self._handed) > most and self.running:
            await self.changed.wait()

    def lose(self, piece: int) -> None:
        """Note that libtorrent does not have a piece that it said it had."""
        self._arrived.discard(piece)

    def forget_arrived(self) -> None:
        """Forget what is not durable: the swarm is left."""
        self._arrived.clear()
        self._handed.clear()
        self.received.on_left()

    # --- making it durable ------------------------------------------------------------------

    async def wait_due(self) -> None:
        """Return when it is time to make durable what has arrived."""
        await self._dirty.wait()
        with trio.move_on_after(self._tuning.save_after):
            await self._plenty.wait()

    async def flush(self) -> list[int]:
        """Have libtorrent write what has arrived to the files; return those pieces, in order."""
        self._dirty, self._plenty = trio.Event(), trio.Event()
        if not self._arrived or not self.running:
            return []
        self._flushed = trio.Event()
        batch = sorted(self._arrived)
        self._swarm.flush()
        with trio.move_on_after(self._tuning.flush):
            await self._flushed.wait()
        return batch

    def on_flushed(self) -> None:
        """Note that libtorrent's cache is in the files."""
        self._flushed.set()

    def settle(self, batch: list[int]) -> None:
        """Let go of pieces: each is durable now, or did not reach the disk."""
        self._arrived.difference_update(batch)
        self.forget_whole(batch)
        if self.running:
            here = [piece for piece in batch if self.is_durable(piece)]
            self._swarm.prioritize(here, Priority.IDLE)

    def forget_whole(self, pieces: Iterable[int]) -> None:
        """Forget provisional ranges that touch these pieces, and have only durable ones by now."""
        for piece in pieces:
            for span in self.provisional.overlapping(*self.stored.layout.range_of(piece)):
                if self.stored.has(*span):
                    self.provisional.drop(*span)
