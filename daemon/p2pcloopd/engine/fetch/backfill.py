"""Fetching for which no reader waits: four jobs, each with its own limit.

    fetch_all    all of a torrent, since a client asked for it
    fill         all of a torrent, in idle time
    Completion   the rest of pieces of which bytes are here
    Interest     more of what is read, of foreign clients that choke a peer which wants nothing

What their pieces are asked of is policy.py's business.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, filterfalse, islice
from typing import Protocol

import trio

from p2pcloopd.engine.disk.metainfo import TorrentLayout
from p2pcloopd.engine.fetch.demand import Demand
from p2pcloopd.engine.fetch.fetcher import Fetcher
from p2pcloopd.engine.fetch.peers import Peers
from p2pcloopd.engine.fetch.store import Store
from p2pcloopd.engine.fetch.tuning import Tuning
from p2pcloopd.tasks import race


class Fetched(Protocol):
    """A torrent, as far as a job needs it."""

    store: Store
    fetcher: Fetcher
    peers: Peers
    demand: Demand
    tuning: Tuning

    async def metadata(self) -> TorrentLayout:
        """Wait until it is known what the torrent consists of."""

    async def mend(self) -> None:
        """Raise what the disk refused a moment ago, or begin anew."""

    async def save(self) -> None:
        """Make durable what has arrived."""


class _Window:
    """Some pieces of a torrent that a job wants at once.

    Args:
        dial: peers that the user named are tried for them.
    """

    def __init__(self, fetcher: Fetcher, store: Store, *, dial: bool) -> None:
        self.asked: set[int] = set()
        self._wants = fetcher.wants
        self._store = store
        self._dial = dial
        self._scan: Iterator[int] = iter(())

    def prune(self) -> None:
        """Forget what is here by now, or was here and is lost: it is found absent again."""
        wanted = self._wants.table
        self.asked = {p for p in self.asked if p in wanted and not self._store.has(p)}

    def fill(self, room: int, absent: Callable[[], Iterator[int]]) -> None:
        """Want so many more pieces of `absent`, going on where the last call ended."""
        if room <= 0:
            return
        fresh = list(islice(self._scan, room))
        if not fresh and not self.asked:
            self._scan = absent()
            fresh = list(islice(self._scan, room))
        if fresh:
            self.asked.update(fresh)
            self._wants.fill(fresh, dial=self._dial)

    def let_go(self) -> None:
        """Want nothing any more."""
        asked, self.asked, self._scan = self.asked, set(), iter(())
        self._wants.unfill(asked, dial=self._dial)


# --- all of a torrent -------------------------------------------------------------------------


async def fetch_all(torrent: Fetched, progress: Callable[[int, int], None] | None = None) -> None:
    """Fetch whatever is missing, behind any reader that waits, and make it durable.

    Args:
        progress: called with (bytes here, bytes in all) as pieces arrive.

    Raises:
        StorageError, CorruptError, FormatError: as for `Torrent.read`.
    """
    layout = await torrent.metadata()
    store, window = torrent.store, _Window(torrent.fetcher, torrent.store, dial=True)
    try:
        with torrent.peers.needed():
            while not store.stored.have.complete():
                await torrent.mend()
                if store.complete():
                    await torrent.save()
                    continue
                changed = store.changed.next
                _top_up(torrent, window)
                await changed.wait()
                if progress is not None:
                    progress(store.have_bytes, layout.total_size)
    finally:
        window.let_go()
    if progress is not None:
        progress(layout.total_size, layout.total_size)


def _top_up(torrent: Fetched, window: _Window) -> None:
    """Fill a window, in batches; nothing is added while a reader waits for this torrent."""
    store, fetcher = torrent.store, torrent.fetcher
    if fetcher.wants.read or not store.running:
        return
    window.prune()
    most = fetcher.window() // store.stored.layout.piece_length + 1
    if len(window.asked) <= most // 2:
        window.fill(most - len(window.asked), partial(_absent_from_anywhere, store))


def _absent_from_anywhere(store: Store) -> Iterator[int]:
    """Go once through the pieces that are not here when they are come to.

    From anywhere on: so those who fetch the same at once have something to give each other.
    """
    pieces = store.stored.layout.pieces
    start = secrets.randbelow(pieces)
    return filterfalse(store.is_coming, chain(range(start, pieces), range(start)))


async def fill(torrent: Fetched, rate: int) -> None:
    """Return when all of a torrent is here, fetched behind readers and what is read ahead of them.

    A reader who is kept waiting empties this queue: what of it was not asked of a peer yet is let
    go, and no more is asked for until none has waited for a while.

    Args:
        rate: bytes a second at most, 0 for as many as arrive.

    Raises:
        StorageError, CorruptError, FormatError: as for `Torrent.read`.
    """
    layout = await torrent.metadata()
    store, demand, quiet = torrent.store, torrent.demand, torrent.tuning.fill_quiet
    absent: Iterator[int] = iter(())
    with torrent.peers.needed():
        while not store.complete():
            begun = trio.current_time()
            await demand.quiet(quiet, begun - quiet)
            window = torrent.fetcher.window()
            asked = min(window, rate) if rate else window
            batch = list(islice(absent, max(1, asked // layout.piece_length)))
            if not batch:
                absent = filterfalse(store.has, range(layout.pieces))
                continue
            with _wanted(torrent.fetcher, batch):
                await race(demand.some, partial(_all_settled, torrent, batch))
            if rate:
                came = sum(map(store.has, batch)) * layout.piece_length
                await trio.sleep_until(begun + came / rate)
    await torrent.save()


@contextmanager
def _wanted(fetcher: Fetcher, pieces: Collection[int], *, rest: bool = False) -> Iterator[None]:
    """Want pieces while the context lasts; no peer is tried for them. See `Wants.fill`."""
    fetcher.wants.fill(pieces, dial=False, rest=rest)
    try:
        yield
    finally:
        fetcher.wants.unfill(pieces, dial=False, rest=rest)


async def _all_settled(torrent: Fetched, pieces: Collection[int]) -> None:
    """Return when each piece is here, or was here and is lost: it is found absent again."""
    store, wanted = torrent.store, torrent.fetcher.wants.table
    left = deque(pieces)
    while left:
        while left and (store.has(left[0]) or not (left[0] in wanted or store.is_coming(left[0]))):
            left.popleft()
        if left:
            await store.changed.wait()


# --- pieces that are here in part -----------------------------------------------------------------


class Completion:
    """Completes pieces of one torrent of which some bytes are provisional.

    Provisional ranges serve readers of this node alone. So pieces are made of those that lie side
    by side, and what lies between others is fetched. The ranges go when their pieces are durable:
    from then on these serve other clients, too.

    A guest that boots needs the line for itself, and may need what it reads only once. So what lies
    between waits until nothing of any torrent was read for half a minute, unless what is here was
    published, and other clients are about to ask for it. Peers give whole pieces only, so they are
    asked for what was published, and for nothing else: other pieces are not worth bytes that are
    here.
    """

    def __init__(self, store: Store, fetcher: Fetcher, demand: Demand, tuning: Tuning) -> None:
        self._store = store
        self._fetcher = fetcher
        self._demand = demand
        self._tuning = tuning
        self._since = 0.0
        self._hurried = trio.Event()

    def hurry(self) -> None:
        """Wait no longer until nothing is read: other clients are about to ask for it."""
        self._hurried.set()
        self._store.changed.notify()

    async def run(self) -> None:
        """Complete what is provisional, for ever."""
        while self._store.disk is None:
            await self._store.changed.wait()
        self._tidy()
        self._since = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._assemble_all)
            await self._complete_all()

    async def _assemble_all(self) -> None:
        """Make pieces of what lies side by side, once no reader waits: that takes no line."""
        store = self._store
        while True:
            for span in await store.provisional.take_kept():
                if sum(span) <= store.stored.layout.total_size:
                    for piece in store.stored.layout.pieces_of(*span):
                        await self._assemble(piece)

    async def _assemble(self, piece: int) -> None:
        store = self._store
        span = store.stored.layout.range_of(piece)
        if store.is_coming(piece) or store.provisional.gaps(*span):
            return
        await self._demand.quiet(self._tuning.assemble_quiet, trio.current_time())
        data = await store.provisional.read(*span)
        if data is None or store.is_coming(piece) or not store.running:
            return
        if not self._fetcher.give(piece, data):
            store.provisional.drop(*span)  # a mirror lied, and no reader has noticed

    async def _complete_all(self) -> None:
        at = 0
        while True:
            changed = self._store.changed.next
            batch, at = self._choose(at)
            if batch:
                await self._complete(batch)
            elif at == 0:
                await changed.wait()

    def _tidy(self) -> None:
        """Forget what is durable by now, and what is part of nothing: it was never compared."""
        stored, provisional = self._store.stored, self._store.provisional
        for span in provisional.ranges:
            if sum(span) > stored.layout.total_size or stored.has(*span):
                provisional.drop(*span)

    def _choose(self, at: int) -> tuple[list[int], int]:
        """Missing pieces of ranges from an offset on, and where to go on; 0: anew."""
        store = self._store
        layout, batch = store.stored.layout, dict[int, None]()
        most = self._tuning.complete_window // layout.piece_length or 1
        while (span := store.provisional.next(at)) is not None:
            if sum(span) > layout.total_size:
                store.provisional.drop(*span)
                continue
            missing = (piece for piece in layout.pieces_of(*span) if not store.is_coming(piece))
            batch.update(dict.fromkeys(missing))
            at = sum(span)
            if len(batch) >= most:
                return list(batch), at
        return list(batch), 0

    async def _complete(self, batch: Iterable[int]) -> None:
        """Want pieces until they are here, or it takes too long."""
        tuning, demand, store = self._tuning, self._demand, self._store
        now = trio.current_time
        async with demand.completing:
            if not self._hurried.is_set():
                idle = partial(demand.idle, tuning.complete_idle, self._since)
                await race(self._hurried, idle)
            quiet = tuning.complete_quiet
            await demand.quiet(quiet, now() - quiet)
            wanted = [piece for piece in batch if not store.is_coming(piece)]
            with trio.move_on_after(tuning.complete_patience):
                while not self._hurried.is_set() and (at := self._exact_ready_at()) > now():
                    with trio.move_on_at(at):
                        await store.changed.wait()
                rest = not self._hurried.is_set()
                with _wanted(self._fetcher, wanted, rest=rest):
                    while self._any_left(wanted) and rest is not self._hurried.is_set():
                        await store.changed.wait()

    def _exact_ready_at(self) -> float:
        return self._fetcher.ranges.exact_ready_at()

    def _any_left(self, pieces: Iterable[int]) -> bool:
        """Whether a piece is missing of which a range is provisional yet."""
        layout, provisional = self._store.stored.layout, self._store.provisional
        return any(
            not self._store.has(piece) and provisional.overlapping(*layout.range_of(piece))
            for piece in pieces
        )


# --- foreign clients ------------------------------------------------------------------------------


class Interest:
    """Keeps pieces of one torrent wanted while it is read, where only foreign clients have it.

    A reader wants a piece, has it, and wants nothing until it reads on. Other nodes of ours do not
    mind. aria2 chokes at once a peer that says "not interested", and where "interested" follows
    right behind, it looks again after 10 s only; transmission looks every 10 s. A hundred reads,
    one after the other, take minutes then. So more is wanted behind what is read: a small torrent
    whole, of a larger one a window (findings/aria2-interest-in-one-batch.sh).
    """

    def __init__(self, store: Store, fetcher: Fetcher, demand: Demand, tuning: Tuning) -> None:
        self._store = store
        self._fetcher = fetcher
        self._demand = demand
        self._tuning = tuning
        self._window = _Window(fetcher, store, dial=False)

    async def run(self) -> None:
        """Stay interested whenever the torrent is read, for ever."""
        while True:
            await self._fetcher.read.wait()
            self._fetcher.read = trio.Event()
            try:
                await self._stay()
            finally:
                self._window.let_go()

    async def _stay(self) -> None:
        fetcher, store, linger = self._fetcher, self._store, self._tuning.interest_linger
        while (left := fetcher.read_at + linger - trio.current_time()) > 0:
            changed = store.changed.next
            self._window.prune()
            if self._helps():
                if not self._window.asked and store.complete():
                    return
                self._window.fill(self._size() - len(self._window.asked), self._absent)
            with trio.move_on_after(min(left, self._tuning.foreign_look)):
                await changed.wait()

    def _helps(self) -> bool:
        """Whether only foreign clients can be asked, which may choke us."""
        store, fetcher = self._store, self._fetcher
        if store.disk is None or not store.running or fetcher.crowd:
            return False
        return fetcher.ranges.exact_ready_at() > trio.current_time() and fetcher.foreign()

    def _size(self) -> int:
        """How many pieces are wanted at once: one where a reader waits and would wait longer."""
        layout, window = self._store.stored.layout, self._fetcher.window()
        if self._demand.busy and layout.total_size > window:
            return 1
        return window // layout.piece_length + 1

    def _absent(self) -> Iterator[int]:
        """The pieces that are not here when they are come to, from the last read one on."""
        count, last = self._store.stored.layout.pieces, self._fetcher.last_read
        return filterfalse(self._store.is_coming, chain(range(last, count), range(last)))
