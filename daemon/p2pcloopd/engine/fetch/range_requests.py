"""HTTP servers as a source: range requests for pieces, and whole files of servers without ranges.

One round trip fetches what takes BitTorrent three: to say that something is wanted, to be
unchoked, to ask. Of a piece of which bytes are here, the missing ones alone are asked for. Each
piece is compared with its hash, given to libtorrent like any other, and so passed on.

libtorrent is told of no web seed. It follows redirects to anywhere (docs/security.md), never asks a
server again that answered 503 once, and comes back to an idle one after a second.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol

import trio

from p2pcloop.errors import NotHereError, P2pcloopError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.engine.fetch.health import Breaker, Silence
from p2pcloopd.engine.fetch.peers import Peers
from p2pcloopd.engine.fetch.store import Store
from p2pcloopd.engine.fetch.tuning import Tuning
from p2pcloopd.engine.fetch.wants import Flight, Want


@dataclass(frozen=True, slots=True)
class Came:
    """Bytes that a server sent, not verified.

    Attributes:
        base: its URL, or that below which its mirror lies.
        refuse: tells that they are wrong: it is asked for nothing of this torrent again.
    """

    data: bytes
    base: str
    refuse: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Dispatched:
    """A piece that a dispatcher gave to this client, and to no other just now.

    Attributes:
        came: its bytes, and who sent them.
        hosts: the dispatcher's addresses.
    """

    piece: int
    came: Came
    hosts: frozenset[str]


class Servers(Protocol):
    """The HTTP servers that may have a torrent's content, its files end to end."""

    @property
    def seeds(self) -> bool:
        """Whether one is named as a web seed: it has all, and serves beside peers."""

    @property
    def dispatches(self) -> bool:
        """Whether one may be a node, which dispatches pieces."""

    @property
    def rate(self) -> float | None:
        """Bytes a second at which answers arrive, once begun; None where that is not known."""

    def heard(self) -> int:
        """A number that grows while bytes arrive from servers."""

    def asking(self) -> bool:
        """Whether a request for content is under way."""

    def ready_at(self) -> float:
        """When one may be asked for a range, in trio's time; infinity where none ever."""

    def whole_ready_at(self) -> float:
        """The same, for all of the content: of servers that serve whole files alone."""

    async def get(self, offset: int, length: int, *, spread: bool = False) -> Came:
        """Exactly these bytes, of the server that answered last.

        Args:
            spread: of the one that is asked for least now, and where that fails of another.

        Raises:
            NotHereError: all that could be asked lack some of them.
            P2pcloopError: none could be asked.
        """

    async def get_first(self, offset: int, length: int) -> Came | None:
        """Exactly these bytes, of whichever server answers first; None where all fail."""

    async def get_whole(self, take: Callable[[Came], Awaitable[None]]) -> None:
        """Have all of the content handed over, in its order. Errors as of `get`."""

    async def dispatch(self, pieces: Sequence[int], size: int) -> Dispatched | None:
        """One of these pieces, of at most `size` bytes, that went to no client just now.

        Returns:
            None where all of them were given out.

        Raises:
            P2pcloopError: no server dispatches anything.
        """

    def begins_metadata(self, offset: int) -> bool:
        """Whether the metadata is to be fetched now that a reader was given bytes at an offset."""

    def faults(self) -> list[str]:
        """What is wrong with those that are, each with its URL."""


class NoServers:
    """There is none."""

    seeds = dispatches = False
    rate: float | None = None

    def heard(self) -> int:
        """See `Servers.heard`."""
        return 0

    def asking(self) -> bool:
        """See `Servers.asking`."""
        return False

    def ready_at(self) -> float:
        """See `Servers.ready_at`."""
        return math.inf

    def whole_ready_at(self) -> float:
        """See `Servers.whole_ready_at`."""
        return math.inf

    async def get(self, _offset: int, _length: int, *, spread: bool = False) -> Came:  # noqa: ARG002
        """See `Servers.get`."""
        raise NotHereError("there is no server to ask")

    async def get_first(self, _offset: int, _length: int) -> Came | None:
        """See `Servers.get_first`."""
        return None

    async def get_whole(self, _take: Callable[[Came], Awaitable[None]]) -> None:
        """See `Servers.get_whole`."""
        raise NotHereError("there is no server to ask")

    async def dispatch(self, _pieces: Sequence[int], _size: int) -> Dispatched | None:
        """See `Servers.dispatch`."""
        raise NotHereError("there is no server to ask")

    def begins_metadata(self, _offset: int) -> bool:
        """See `Servers.begins_metadata`."""
        return False

    def faults(self) -> list[str]:
        """See `Servers.faults`."""
        return []


class RangeRequests:
    """The range requests for pieces of one torrent.

    Attributes:
        servers: who is asked.
        flights: the requests that are under way.
        exact: whether exact ranges may be asked for; it trips where one fails.
        silence: ends requests for them while no server sends anything.
        not_before: no other range is asked for before: a server failed and did not say when.
    """

    def __init__(
        self,
        store: Store,
        peers: Peers,
        wants: Mapping[int, Want],
        give: Callable[[int, bytes], bool],
        tuning: Tuning,
    ) -> None:
        """`give` takes a piece, if it is right; `wants` are those of the torrent, by piece."""
        self.servers: Servers = NoServers()
        self.flights: set[Flight] = set()
        self.exact = Breaker(tuning.exact_cooldown)
        self.silence = Silence(self._heard, tuning.exact_hedge)
        self.not_before = -math.inf
        self._whole = trio.Event()
        self._store = store
        self._peers = peers
        self._wants = wants
        self._give = give
        self._tuning = tuning
        self._rest = trio.CapacityLimiter(tuning.rest_concurrency)
        self._to_fly, self._to_begin = trio.open_memory_channel[Flight](math.inf)

    def exact_ready_at(self) -> float:
        """When a server can be asked for exact ranges, in trio's time; infinity where none ever."""
        return max(self.exact.ready_at, self.servers.ready_at())

    def _heard(self) -> int:
        return self.servers.heard()

    async def run(self) -> None:
        """Carry requests out, begun in their order, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fetch_whole_files)
            nursery.start_soon(self.silence.run)
            async for flight in self._to_begin:
                nursery.start_soon(self._fly, flight)
                await trio.lowlevel.checkpoint()  # tasks that begin together do so in any order

    # --- requests ---------------------------------------------------------------------------

    def start(self, run: range, *, exact: bool, hedged: bool = False) -> None:
        """Ask a server for pieces that are wanted.

        Args:
            exact: at once; else it counts among those for what peers do not send.
            hedged: peers are asked for them, too.
        """
        hurried = any(self._wants[piece].waiting for piece in run)
        flight = Flight(run, math.inf, exact, hurried, hedged)
        for piece in run:
            self._wants[piece].flight = flight
        self.flights.add(flight)
        self._to_fly.send_nowait(flight)

    async def _fly(self, flight: Flight) -> None:
        try:
            wait = nullcontext() if flight.hurried or not flight.exact else self._rest
            async with wait:
                flight.since = trio.current_time()
                self._store.changed.notify()  # when peers are asked as well depends on it
                for part in tuple(self._left(flight, flight.run)):
                    await self._wait_for_claims(part)
                    for run in tuple(self._left(flight, part)):
                        await self._fetch(run, exact=flight.exact)
        finally:
            self.flights.discard(flight)
            for piece in flight.run:
                want = self._wants.get(piece)
                if want is not None and want.flight is flight:
                    want.flight = None
            self._store.changed.notify()

    def _left(self, flight: Flight, run: range) -> Iterator[range]:
        """What of a run is not here by now, and still wanted of this flight, side by side."""
        first = run.start
        for piece in (*run, run.stop):
            want = self._wants.get(piece)
            ours = want is not None and want.flight is flight
            if piece == run.stop or not ours or self._store.is_coming(piece):
                if first < piece:
                    yield range(first, piece)
                first = piece + 1

    async def _wait_for_claims(self, run: range) -> None:
        """Wait for those of a run's bytes that are on their way by themselves."""
        layout = self._store.stored.layout
        start, end = run.start * layout.piece_length, sum(layout.range_of(run[-1]))
        while (coming := self._store.provisional.claimed(start, end - start)) is not None:
            await coming.wait()

    async def _fetch(self, run: range, *, exact: bool) -> None:
        """Ask for a run of pieces, and note how it went."""
        now = trio.current_time
        try:
            right = await self._ask(run, spread=not exact)
        except P2pcloopError as err:
            if exact:
                self.exact.trip(now())
            elif isinstance(err, NotHereError):
                self._record_absent(run)
            elif self.servers.ready_at() <= now():
                self.not_before = now() + self._tuning.server_retry
        else:
            if exact and not right:
                self.exact.trip(now())

    def _record_absent(self, run: range) -> None:
        """Ask for the pieces of a run one by one; leave one that no server has for a while."""
        until = trio.current_time() + self._tuning.absent
        for piece in run:
            want = self._wants.get(piece)
            if want is not None and len(run) > 1:
                want.single = True
            elif want is not None:
                want.absent_until = until

    async def _ask(self, run: range, *, spread: bool) -> bool:
        """Ask for those bytes of a run that are not here; whether all pieces of it were right."""
        provisional, layout = self._store.provisional, self._store.stored.layout
        start, end = run.start * layout.piece_length, sum(layout.range_of(run[-1]))
        known = {}
        for offset, length in provisional.overlapping(start, end - start):
            part = await provisional.read(offset, length)
            if part is not None:
                known[offset] = part
        came, senders = await self._get(_gaps(start, end, known), spread=spread)
        if self._hand_over(run, _joined(start, end, known | came)):
            return True
        if not known:
            for each in senders:
                each.refuse()
            return False
        # What a server gave to a reader may be wrong: it is asked for anew, and the rest is not.
        provisional.drop(start, end - start)
        anew, _ = await self._get(_gaps(start, end, came), spread=spread)
        return self._hand_over(run, _joined(start, end, came | anew))

    async def _get(
        self, wanted: Iterable[tuple[int, int]], *, spread: bool
    ) -> tuple[dict[int, bytes], list[Came]]:
        """Ask for ranges; what arrived, by offset, and who sent it."""
        found, senders = {}, []
        for offset, length in list(wanted):
            with self._store.provisional.claim(offset, length):
                came = await self.servers.get(offset, length, spread=spread)
            if len(came.data) != length:
                raise NotHereError(
                    tr(
                        "{base} sent {data_count} bytes and not {length}",
                        base=came.base,
                        data_count=len(came.data),
                        length=length,
                    )
                )
            self.count(offset, came)
            found[offset] = came.data
            senders.append(came)
        return found, senders

    def count(self, offset: int, came: Came) -> None:
        """Count bytes that arrived, before they are kept."""
        size, disk = len(came.data), self._store.disk
        piece_length = 0 if disk is None else disk.layout.piece_length
        self._store.received.on_range(offset, size, piece_length)
        if piece_length and size:
            last = (offset + size - 1) // piece_length
            self._store.senders.note(offset // piece_length, last, came.base)
        self._peers.on_bytes(size)
        self._peers.on_http(came.base, size)

    def _hand_over(self, run: range, data: bytes) -> bool:
        """Hand over the pieces of a run, up to the first that is wrong; whether none is."""
        size = self._store.stored.layout.piece_length
        for piece in run:
            part = data[(piece - run.start) * size :][:size]
            if not (self._store.is_coming(piece) or self._give(piece, part)):
                return False
        return True

    # --- servers of whole files -------------------------------------------------------------

    def start_whole(self) -> None:
        """Take all of the content from a server that has no ranges, unless that goes on already."""
        if trio.current_time() >= self.not_before:
            self._whole.set()

    async def _fetch_whole_files(self) -> None:
        while True:
            await self._whole.wait()
            await self._fetch_whole()
            self._whole = trio.Event()
            self._store.changed.notify()

    async def _fetch_whole(self) -> None:
        """Take it to its end: begun anew, it would be sent anew."""
        layout, store = self._store.stored.layout, self._store
        size, total = layout.piece_length, layout.total_size
        left, at, offset = bytearray(), 0, 0

        async def take(came: Came) -> None:
            nonlocal at, offset
            for piece in layout.pieces_of(offset, len(came.data)):
                store.received.hedge(piece)  # there is no asking for a part
            self.count(offset, came)
            offset += len(came.data)
            left.extend(came.data)
            while len(left) >= min(size, total - at * size) > 0:
                piece, at = at, at + 1
                data = bytes(left[:size])
                del left[:size]
                if not (store.is_coming(piece) or self._give(piece, data)):
                    came.refuse()
                    raise NotHereError(tr("{base} has wrong bytes", base=came.base))
                await store.handed_fewer(max(1, self._tuning.whole_unsaved // size))

        try:
            await self.servers.get_whole(take)
            await store.handed_fewer(0)
        except P2pcloopError:
            self.not_before = trio.current_time() + self._tuning.server_retry


def _joined(start: int, end: int, parts: Mapping[int, bytes]) -> bytes:
    """The bytes from start to end, of which each is in a part."""
    data = bytearray(end - start)
    for offset, part in parts.items():
        cut = part[max(0, start - offset) : max(0, end - offset)]
        at = max(0, offset - start)
        data[at : at + len(cut)] = cut
    return bytes(data)


def _gaps(start: int, end: int, known: Mapping[int, bytes]) -> Iterator[tuple[int, int]]:
    """What lies between parts: offset and length."""
    for offset in sorted(known):
        if start < min(offset, end):
            yield start, min(offset, end) - start
        start = max(start, offset + len(known[offset]))
    if start < end:
        yield start, end - start
