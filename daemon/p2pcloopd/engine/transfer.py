"""The pieces of one torrent on their way: wanted by readers or in the background, then arrived."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloopd.engine.background import Background
from p2pcloopd.engine.demand import Demand
from p2pcloopd.engine.holes import is_linked
from p2pcloopd.engine.otherwise import NoOther, Otherwise
from p2pcloopd.engine.peers import Peers
from p2pcloopd.engine.pieces import Pieces
from p2pcloopd.engine.provisional import Provisional
from p2pcloopd.engine.received import Received
from p2pcloopd.engine.stored import Stored
from p2pcloopd.engine.swarm import AHEAD, BACKGROUND, DEMAND, IDLE, Swarm
from p2pcloopd.entry import plain_errors

log = logging.getLogger(__name__)

SAVE_SECONDS = 1
SAVE_BYTES = 8 << 20
"""Arrived pieces are made durable after so long, or once they are so many."""

SMALL = 4 << 20
FOREIGN_WINDOW = 1 << 20
"""Foreign clients choke whoever wants nothing, if only for the moment until the window is filled
again: of them a small torrent is asked for whole, and of others so many bytes at the least."""

FOREIGN_SECONDS = 1.0
UNKNOWN_SECONDS = 0.05
"""Between two looks at who is connected, where foreign clients are, and where none is yet."""

CROWD_PATIENCE = 0.25
"""Seconds that a reader in a crowd waits for what another peer is about to have."""

HANDOUT_PATIENCE = 1.0
"""The same where what one of the crowd is given is given to no other."""

FLUSH_SECONDS = 10
"""How long a flush may take. Nothing depends on it: what is not in the file fails the compare."""


class Transfer:
    """What one torrent asks of its swarm, and what has come of it and is not durable yet.

    It is the one place that knows what is here, in whatever form, and what is on its way: durable
    (`disk`), arrived, provisional, asked of the swarm, asked for otherwise. Nothing of these is
    asked for again (docs/scheduling.md, "What is here").

    Attributes:
        disk: what is here, or None until the metadata is known; set by the owner.
        running: whether the swarm is joined.
        pieces: the readers that wait.
        demand: the readers of all torrents; set by the owner.
        crowd: how many others want the same at the same time; set by engine/ahead.py.
        apart: whether whoever has all is kept out of the swarm meanwhile; set there, too.
        direct: brings pieces otherwise than by the swarm; set by the owner.
        compared_since: since when no piece is sent to others that was not compared with its hash.
        suspect: is told of pieces that are here and may be wrong; set by the owner.
        provisional: bytes that are here, of pieces that are not.
        read: set when somebody reads what is not here; read_at: when that was last, last_read: the
            first piece of it.
        received: counts what came.
    """

    def __init__(self, swarm: Swarm, peers: Peers, directory: Path) -> None:
        """`directory` is the torrent's in the store."""
        self.disk: Stored | None = None
        self.running = False
        self.pieces = Pieces(self._raise, self._prioritize, self._lower, self.stall, self.notify)
        self.demand = Demand()
        self.crowd = 0
        self.apart = False
        self.direct: Otherwise = NoOther()
        self.compared_since = -math.inf
        self.suspect: Callable[[Iterable[int]], None] = lambda _pieces: None
        self.provisional = Provisional(directory, lambda: self.demand, self.notify)
        self.received = Received(self._known)
        self._swarm = swarm
        self._peers = peers
        self._foreign, self._foreign_at = False, -math.inf
        self.read = trio.Event()
        self.read_at = -math.inf
        self.last_read = 0
        self._asked: set[int] = set()
        self._handed: set[int] = set()
        self._spare: Counter[int] = Counter()
        self._arrived: set[int] = set()
        self._background = Background()
        self._dirty = trio.Event()
        self._plenty = trio.Event()
        self._flushed = trio.Event()
        self._changed = trio.Event()

    @property
    def stored(self) -> Stored:
        """`disk`, where the metadata is known."""
        assert self.disk is not None, "the metadata is not known yet"
        return self.disk

    @property
    def arrived(self) -> int:
        """How many pieces are here but not durable yet."""
        return len(self._arrived)

    @property
    def saved(self) -> bool:
        """Whether nothing has come, or is about to, that is not durable."""
        return not (self._arrived or self._handed or self._asked)

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
            for start, size in self.provisional.ranges:
                total -= sum(self._whole(start, size))
        return total

    def _whole(self, offset: int, length: int) -> Iterator[int]:
        """How many bytes of a range lie in each of its pieces that is here."""
        layout = self.stored.layout
        for piece in layout.pieces_of(offset, length):
            start, size = layout.range_of(piece)
            if start < offset + length and self.has(piece):
                yield min(offset + length, start + size) - max(offset, start)

    def complete(self) -> bool:
        """Whether all pieces are here, durable or not."""
        return self.stored.have.count + self.arrived == self.stored.layout.pieces

    def evictable(self) -> bool:
        """Whether pieces may go: nobody waits for any, and the files are ours alone."""
        if self.disk is None or not self.running or self.pieces.wanted or self._background.users:
            return False
        return not self.disk.in_place and not is_linked(self.disk.content)

    def notify(self) -> None:
        """Wake whoever is in `more`: something changed."""
        self._changed.set()
        self._changed = trio.Event()

    @property
    def changed(self) -> trio.Event:
        """Set when something changes from now on."""
        return self._changed

    async def change(self) -> None:
        """Return when something changed."""
        await self._changed.wait()

    def has(self, piece: int) -> bool:
        """Whether a piece is here, durable or not."""
        return self.stored.have.has(piece, piece) or piece in self._arrived

    def is_coming(self, piece: int) -> bool:
        """Whether a piece is here, or was given to libtorrent, which is about to say so."""
        return self.has(piece) or piece in self._handed

    def under_way(self, pieces: Collection[int]) -> bool:
        """Whether one of pieces is wanted by a reader, or on its way to become whole.

        Where none is, the swarm does not ask for any until it is told so again: those that are
        wanted in the background come otherwise.
        """
        if any(piece in self.pieces or self.direct.brings(piece) for piece in pieces):
            return True
        asked = self._asked.intersection(pieces)
        requested = self._requested(asked)
        self.ask_swarm(requested)
        self.direct.take(asked - requested)
        return bool(requested)

    def in_part(self, piece: int) -> bool:
        """Whether the rest of a piece is brought by its exact bytes: some are here, or coming."""
        if not self.direct.usable():
            return False
        layout = self.stored.layout
        return self.provisional.touches(*layout.range_of(piece)) or self.direct.brings(piece)

    def _requested(self, pieces: Iterable[int]) -> set[int]:
        """Those of pieces that a peer was asked for, or has sent in part.

        The others are not asked for any more. libtorrent may have been told of them and have asked
        nobody yet: so it is told of them before it is looked at for the last time.
        """
        asked = self._asked.intersection(pieces)
        if not (asked and self.running):
            return set()
        idle = asked - self._swarm.requested()
        if idle:
            self._swarm.prioritize(idle, IDLE)
            idle -= self._swarm.requested()
            self._asked -= idle
        return asked - idle

    def _known(self, offset: int, length: int) -> int:
        """How many bytes of a range are here in whole pieces, or provisional."""
        layout = None if self.disk is None else self.disk.layout
        if layout is None or offset + length > layout.total_size:
            return length - sum(size for _, size in self.provisional.gaps(offset, length))
        known = 0
        for piece in layout.pieces_of(offset, length):
            start, size = layout.range_of(piece)
            first, last = max(offset, start), min(offset + length, start + size)
            known += last - first
            if not self.has(piece):
                known -= sum(size for _, size in self.provisional.gaps(first, last - first))
        return known

    # --- the swarm --------------------------------------------------------------------------

    def join(self) -> None:
        """Join the swarm with what is durable, and ask again for what readers wait for.

        Not with files that lie elsewhere and are not what they were: see engine/in_place.py.
        """
        disk = self.disk
        if disk is not None and disk.fault is not None:
            return
        info = None if disk is None else disk.info
        whole = disk is not None and disk.have.complete()
        have = None if whole else [] if disk is None else disk.have.to_list()
        held = {} if disk is None else disk.content.held()
        self._swarm.start(info, have, self._peers.sources, held)
        self.compared_since = trio.current_time() if whole else -math.inf
        self.running = True
        self._peers.look_again()
        self._peers.try_again(begun=info is None)
        self._background.forget()
        self._raise(self.pieces.asked)
        self.notify()

    async def leave(self) -> None:
        """Leave the swarm and forget what has arrived and is not durable."""
        self.running = False
        await self._swarm.stop()
        self._arrived.clear()
        self._asked.clear()
        self._handed.clear()
        self.received.on_left()

    # --- those who want pieces --------------------------------------------------------------

    async def get(
        self, missing: list[int], *, keep: bool, ahead: bool = False
    ) -> dict[int, bytes | None]:
        """Wait for pieces, as `Pieces.get`; peers are tried meanwhile, if they are needed."""
        self.note_read(missing[0])
        if ahead:
            return await self.pieces.get(missing, keep=keep, ahead=True)
        with self.demand.waiting():
            if self.apart:
                return await self._get_apart(missing, keep=keep)
            if self.crowd:
                # All who boot together want this now: some of them get it for the others.
                with trio.move_on_after(CROWD_PATIENCE):
                    return await self.pieces.get(missing, keep=keep, ahead=True, first=True)
            with nullcontext() if self.direct.ready() else self._peers.needed():
                return await self.pieces.get(missing, keep=keep)

    async def _get_apart(self, missing: list[int], *, keep: bool) -> dict[int, bytes | None]:
        """Wait for what is handed out to one of a crowd, and asked for otherwise if it is not."""

        async def lose_patience() -> None:
            await trio.sleep(HANDOUT_PATIENCE)
            self.direct.take([piece for piece in missing if piece in self.pieces])

        with plain_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lose_patience)
                found = await self.pieces.get(missing, keep=keep)
                nursery.cancel_scope.cancel()
        return found

    def note_read(self, piece: int) -> None:
        """Note that a piece is read, or about to be: see engine/interest.py."""
        self.read_at, self.last_read = trio.current_time(), piece
        self.read.set()

    def fail(self, error: P2pcloopError) -> None:
        """Tell all who wait that their pieces cannot be had."""
        self.pieces.fail(error)
        self.notify()

    @contextmanager
    def background(self) -> Iterator[None]:
        """Say that somebody wants all that is missing, while the context lasts; see `more`."""
        self._background.users += 1
        try:
            with self._peers.needed():
                yield
        finally:
            self._background.users -= 1
            if not self._background.users:
                self._lower(self._background.forget())

    @contextmanager
    def spare(self, pieces: Collection[int]) -> Iterator[None]:
        """Ask for pieces behind everything else, while the context lasts.

        Whoever is at hand may give them: nobody is said to wait, and no peer is tried for them.
        """
        wanted = [piece for piece in pieces if piece not in self.pieces and not self.has(piece)]
        self.ask_spare(wanted)
        try:
            yield
        finally:
            self.let_go(wanted)

    def ask_spare(self, pieces: Collection[int]) -> None:
        """Ask for pieces behind everything else, until `let_go`."""
        if pieces:
            self._spare.update(pieces)
            self._ask([piece for piece in pieces if piece not in self.pieces], BACKGROUND)

    def let_go(self, pieces: Collection[int]) -> None:
        """Ask for pieces no more that `ask_spare` was called with."""
        self._spare.subtract(pieces)
        self._spare += Counter()  # those that nobody wants are gone
        self._lower(pieces)

    def foreign(self) -> bool:
        """Whether the peers that are connected are all of other programs."""
        since = trio.current_time() - self._foreign_at
        if since >= (FOREIGN_SECONDS if self._foreign else UNKNOWN_SECONDS):
            self._foreign = self.running and self._swarm.foreign()
            self._foreign_at = trio.current_time()
        return self._foreign

    def window(self) -> int:
        """Bytes that are asked for at once where nobody waits."""
        window = self._peers.window()
        if not self.foreign():
            return window
        return max(window, SMALL if self.stored.layout.total_size <= SMALL else FOREIGN_WINDOW)

    async def more(self) -> None:
        """Keep a window of background pieces asked for, and return when something changed."""
        changed = self._changed
        self._top_up()
        await changed.wait()

    def _top_up(self) -> None:
        """Fill the window; nothing is added while a reader waits."""
        if self.pieces.wanted or not self.running:
            return
        layout = self.stored.layout
        window = self.window() // layout.piece_length + 1
        chosen = self._background.choose(window, layout.pieces, self.has)
        self._ask(chosen, BACKGROUND)

    def _ask(self, pieces: Collection[int], priority: int) -> None:
        """Ask for pieces: of those that are here in part for the rest, the swarm for others."""
        if not self.running:
            return
        pieces = [piece for piece in pieces if piece not in self._handed]
        in_part = {piece for piece in pieces if self.in_part(piece)}
        in_part -= self._requested(in_part)
        if in_part:
            self.direct.take(in_part)
        self._ask_swarm([piece for piece in pieces if piece not in in_part], priority)

    def _ask_swarm(self, pieces: Collection[int], priority: int) -> None:
        self._asked.update(pieces)
        self._swarm.prioritize(pieces, priority)

    def _raise(self, pieces: Iterable[int]) -> None:
        absent = self._absent_of(pieces)
        urgent = {piece for piece in absent if self.pieces.urgent(piece)}
        if urgent and self.direct.ready() and not self.crowd:
            urgent -= self._requested(urgent)
            self.direct.take(urgent)
            absent = [piece for piece in absent if piece not in urgent]
        self._prioritize(absent)

    def ask_swarm(self, pieces: Iterable[int]) -> None:
        """Ask the swarm for what was not had otherwise, each piece as urgently as it is wanted."""
        if not self.running:
            return
        absent = self._absent_of(pieces)
        wanted = [piece for piece in absent if piece in self.pieces]
        self._ask_swarm([p for p in wanted if self.pieces.urgent(p)], DEMAND)
        self._ask_swarm([p for p in wanted if not self.pieces.urgent(p)], AHEAD)
        spare = [p for p in absent if p in self._spare or p in self._background.asked]
        self._ask_swarm([p for p in spare if p not in self.pieces], BACKGROUND)

    def _absent_of(self, pieces: Iterable[int]) -> list[int]:
        """Those of pieces that are not here; the others are handed over."""
        absent: list[int] = []
        for piece in pieces if self.running else ():
            if self.stored.have.has(piece, piece):
                self.pieces.deliver(piece, None)
            elif piece in self._arrived:
                self._swarm.read_piece(piece)
            else:
                absent.append(piece)
        return absent

    def _prioritize(self, wanted: Collection[int]) -> None:
        """Ask the swarm for pieces, each as urgently as it is wanted."""
        self._ask([p for p in wanted if self.pieces.urgent(p)], DEMAND)
        self._ask([p for p in wanted if not self.pieces.urgent(p)], AHEAD)

    def _lower(self, pieces: Iterable[int]) -> None:
        if self.running:
            unwanted = [p for p in pieces if p not in self._arrived and p not in self.pieces]
            wanted = self._background.asked | self._spare.keys()
            self._swarm.prioritize([piece for piece in unwanted if piece not in wanted], IDLE)
            self._swarm.prioritize(self._asked.intersection(unwanted) & wanted, BACKGROUND)
        self.notify()

    def stall(self, pieces: Iterable[int]) -> None:
        """Do what can be done about pieces that were asked for and do not come."""
        if not self.running:
            return
        absent = [piece for piece in pieces if not self.has(piece)]
        self._swarm.insist()
        for piece in absent:
            self.received.hedge(piece)
        if self.direct.ready():
            self.direct.take([piece for piece in absent if self.pieces.urgent(piece)])
        # Peers are looked through at once only for a piece that was not wanted before.
        self._swarm.prioritize(absent, IDLE)
        self._prioritize(absent)

    # --- whoever makes them durable ---------------------------------------------------------

    async def wait_due(self) -> None:
        """Return when it is time to make durable what has arrived."""
        await self._dirty.wait()
        with trio.move_on_after(SAVE_SECONDS):
            await self._plenty.wait()

    async def flush(self) -> list[int]:
        """Have libtorrent write what has arrived to the files; return those pieces, in order."""
        self._dirty, self._plenty = trio.Event(), trio.Event()
        if not self._arrived or not self.running:
            return []
        self._flushed = trio.Event()
        batch = sorted(self._arrived)
        self._swarm.flush()
        with trio.move_on_after(FLUSH_SECONDS):
            await self._flushed.wait()
        return batch

    def settle(self, batch: list[int]) -> None:
        """Let go of pieces: each is durable now, or did not reach the disk."""
        self._arrived.difference_update(batch)
        self.forget_whole(batch)
        if self.running:
            have = self.stored.have
            self._swarm.prioritize([piece for piece in batch if have.has(piece, piece)], IDLE)

    def forget_whole(self, pieces: Iterable[int]) -> None:
        """Forget provisional ranges that touch these pieces, and have only durable ones by now."""
        stored = self.stored
        for piece in pieces:
            for part in self.provisional.overlapping(*stored.layout.range_of(piece)):
                if stored.has(*part):
                    self.provisional.drop(*part)

    # --- what libtorrent tells --------------------------------------------------------------

    def on_piece_arrived(self, piece: int) -> None:
        """Note that libtorrent has a piece and found it right.

        News that come while the swarm is left do not count: what is not durable is forgotten.
        """
        if not self.running or self.disk is None or self.disk.have.has(piece, piece):
            return
        self._arrived.add(piece)
        self._asked.discard(piece)
        self._handed.discard(piece)
        self.received.on_piece(piece)
        self._background.asked.discard(piece)
        if piece in self.pieces:
            self._swarm.read_piece(piece)
        self._dirty.set()
        if len(self._arrived) * self.disk.layout.piece_length >= SAVE_BYTES:
            self._plenty.set()
        self.notify()

    def on_piece_brought(self, piece: int, data: bytes) -> bool:
        """Take a piece that came otherwise, if it is right, and give it to libtorrent, too."""
        if not self.stored.is_right(piece, data):
            return False
        self.pieces.deliver(piece, data)
        if self.running and not self.is_coming(piece):
            self._handed.add(piece)
            self._swarm.add_piece(piece, data)
        self.notify()
        return True

    def on_piece_read(self, piece: int, data: bytes) -> None:
        """Take a piece that `Swarm.read_piece` was asked for."""
        self.pieces.deliver(piece, data)
        self.notify()

    def on_read_failed(self, piece: int) -> None:
        """Note that libtorrent does not have a piece that it said it had: it is to come again."""
        self._arrived.discard(piece)
        if piece in self.pieces:
            self._raise([piece])

    def on_flushed(self) -> None:
        """Note that libtorrent's cache is in the files."""
        self._flushed.set()

    def on_checked(self) -> None:
        """Compare notes: after libtorrent looked at the files, or when its reports were lost."""
        here, disk = self._swarm.here(), self.disk
        if disk is None or len(here) != disk.layout.pieces:
            return
        lost = [p for p, right in enumerate(here) if not right and disk.have.has(p, p)]
        if lost:
            self.suspect(lost)
        if disk.in_place:
            return
        for piece, right in enumerate(here):
            if right:
                self.on_piece_arrived(piece)
        self.on_flushed()
        self._raise(self.pieces.asked)
