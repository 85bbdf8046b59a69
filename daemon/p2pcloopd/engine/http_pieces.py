"""Pieces from HTTP servers: web seeds (BEP 19), and mirrors where peers bring nothing.

What the swarm is asked for passes by here first (`SessionSwarm.prioritize`). A piece is asked of
peers or of a server, not of both, unless the first does not bring it:

- of servers, where no peer is connected or none has sent anything for a second;
- of web seeds, half of what is wanted, while peers send;
- of web seeds, what peers did not bring in `LATE_SECONDS`;
- of peers again, what a server did not bring in `HEDGE_SECONDS`, or cannot.

libtorrent is told of no web seed. It follows redirects to anywhere (docs/security.md), never asks a
server again that answered 503 once, and comes back to an idle one after a second.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import trio

from p2pcloop.errors import NotHereError, P2pcloopError
from p2pcloopd.engine.peers import Peers
from p2pcloopd.engine.swarm import IDLE, Swarm
from p2pcloopd.engine.transfer import Transfer
from p2pcloopd.entry import plain_errors

CONNECTIONS = 4
"""Ranges that are asked for at once: each waits for a round trip, or for a new connection."""

MIN_RANGE = 256 << 10
MAX_RANGE = 4 << 20
RANGE_SECONDS = 0.25
"""A range is what comes in so long, within these bounds: less would be mostly round trips, or
connections where a server closes each, and more would keep a reader waiting behind it."""

SILENT_SECONDS = 1.0
"""Peers that are connected, or are being tried, have so long before mirrors are asked instead."""

LATE_SECONDS = 3.0
HEDGE_SECONDS = 2.0

ABSENT_SECONDS = 10.0
"""So long no server is asked for a piece that none of them has: some are nodes that have a part."""

RETRY_SECONDS = 1.0
"""After a failure of which no server says when to ask again."""

UNSAVED_BYTES = 8 << 20
"""Bytes of a whole file that are handed over before libtorrent has taken them."""


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


class Servers(Protocol):
    """The HTTP servers that may have a torrent's content, its files end to end."""

    @property
    def seeds(self) -> bool:
        """Whether one is named as a web seed: it has all, and serves beside peers."""

    @property
    def rate(self) -> float | None:
        """Bytes a second at which answers come, once begun; None where that is not known."""

    def ready_at(self) -> float:
        """When one may be asked for a range, in trio's time; infinity where none ever."""

    def whole_ready_at(self) -> float:
        """The same, for all of the content: of servers that serve whole files alone."""

    async def get(self, offset: int, length: int) -> Came:
        """Exactly these bytes.

        Raises:
            NotHereError: all that could be asked lack some of them.
            P2pcloopError: none could be asked.
        """

    async def get_whole(self, take: Callable[[Came], Awaitable[None]]) -> None:
        """Have all of the content handed over, in its order. Errors as of `get`."""

    def faults(self) -> list[str]:
        """What is wrong with those that are, each with its URL."""


class NoServers:
    """There is none."""

    seeds = False
    rate = None

    def ready_at(self) -> float:
        """See `Servers.ready_at`."""
        return math.inf

    def whole_ready_at(self) -> float:
        """See `Servers.whole_ready_at`."""
        return math.inf

    async def get(self, _offset: int, _length: int) -> Came:
        """See `Servers.get`."""
        raise NotHereError("there is no server to ask")

    async def get_whole(self, _take: Callable[[Came], Awaitable[None]]) -> None:
        """See `Servers.get_whole`."""
        raise NotHereError("there is no server to ask")

    def faults(self) -> list[str]:
        """See `Servers.faults`."""
        return []


@dataclass(slots=True)
class _Wanted:
    """A piece that is asked for: how urgently, and since when it has been asked of peers."""

    priority: int
    since: float


class HttpPieces:
    """What is asked of HTTP servers of one torrent.

    Attributes:
        servers: they.
        claimed: pieces that are asked of them, or came and are about to arrive.
    """

    def __init__(self, transfer: Transfer, peers: Peers, swarm: Swarm) -> None:
        self._servers: Servers = NoServers()
        self.claimed: set[int] = set()
        self._transfer = transfer
        self._peers = peers
        self._swarm = swarm
        self._wanted: dict[int, _Wanted] = {}
        self._wanted_since = 0.0
        self._silent = False
        self._kept: set[int] = set()
        self._absent: dict[int, float] = {}
        self._single: set[int] = set()
        self._not_before = -math.inf
        self._changed = trio.Event()

    @property
    def servers(self) -> Servers:
        return self._servers

    @servers.setter
    def servers(self, servers: Servers) -> None:
        self._servers = servers
        self._wake()

    # --- what the swarm is asked for --------------------------------------------------------

    def share(self, pieces: list[int], priority: int) -> list[int]:
        """Note how urgently pieces are wanted; return those that peers are to be asked for."""
        if priority == IDLE:
            for piece in pieces:
                self._wanted.pop(piece, None)
            self._kept.difference_update(pieces)
            return pieces
        if not pieces:
            return pieces
        now = trio.current_time()
        if not self._wanted:
            self._wanted_since = now
        fresh = [piece for piece in pieces if piece not in self._wanted]
        for piece in pieces:
            self._wanted.setdefault(piece, _Wanted(priority, now)).priority = priority
        if isinstance(self._servers, NoServers):
            return pieces
        if self._shares(now):
            room = CONNECTIONS * self._most() - len(self._kept)
            self._kept.update(fresh[len(fresh) - max(0, min(room, len(fresh) // 2)) :])
        self._wake()
        return [p for p in pieces if p not in self.claimed and p not in self._kept]

    def arrived(self, piece: int) -> None:
        """Note that a piece is here, from wherever."""
        self._forget(piece)
        if self._kept and len(self._wanted) <= len(self._kept | self.claimed):
            kept, self._kept = self._kept, set()
            self._ask_peers(kept)  # they have nothing else to do

    def clear(self) -> None:
        """Forget all: the swarm is left, or joined anew."""
        for collection in (self._wanted, self._kept, self._absent, self.claimed, self._single):
            collection.clear()

    def _forget(self, piece: int) -> None:
        self._wanted.pop(piece, None)
        self._absent.pop(piece, None)
        for pieces in (self._kept, self.claimed, self._single):
            pieces.discard(piece)

    def _ask_peers(self, pieces: Iterable[int]) -> None:
        now = trio.current_time()
        by_priority: dict[int, list[int]] = {}
        for piece in pieces:
            wanted = self._wanted.get(piece)
            if wanted is not None:
                wanted.since = now
                by_priority.setdefault(wanted.priority, []).append(piece)
        for priority, asked in by_priority.items():
            self._swarm.ask_peers(asked, priority)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- what is asked of servers -----------------------------------------------------------

    async def run(self) -> None:
        """Ask servers for what is theirs to bring, for ever."""
        async with trio.open_nursery() as nursery:
            for number in range(CONNECTIONS):
                nursery.start_soon(self._work, number)

    async def _work(self, number: int) -> None:
        while True:
            changed = self._changed
            run, look_at = self._choose()
            if run is not None:
                await self._bring(run)
                continue
            if number == 0 and self._whole_is_due():
                await self._bring_whole()
                continue
            with trio.move_on_at(look_at):
                await changed.wait()

    def _choose(self) -> tuple[range | None, float]:
        """What to ask a server for now; and where that is nothing, when to look again."""
        now = trio.current_time()
        if self._transfer.disk is None or not self._transfer.running or not self._wanted:
            return None, math.inf
        ready = max(self._servers.ready_at(), self._not_before)
        if ready > now:
            whole = self._servers.whole_ready_at()
            return None, min(ready, math.inf if whole == math.inf else max(whole, now + 1))
        chosen = self._candidates(now)
        if not chosen:
            return None, now + SILENT_SECONDS
        chosen.sort(key=lambda piece: -self._wanted[piece].priority)
        return self._run_of(chosen), now

    def _candidates(self, now: float) -> list[int]:
        """The pieces that servers are to bring, those that were asked for first before others."""
        free = [p for p in self._wanted if p not in self.claimed and self._may_ask(p, now)]
        if not self._peers_bring(now):
            return free
        if not self._shares(now):
            return []
        late = now - LATE_SECONDS
        return [p for p in free if p in self._kept or self._wanted[p].since <= late]

    def _may_ask(self, piece: int, now: float) -> bool:
        coming = self._transfer.is_coming(piece) or self._transfer.direct.brings(piece)
        return self._absent.get(piece, -math.inf) <= now and not coming

    def _run_of(self, chosen: list[int]) -> range:
        """The first of pieces, and those that follow it and are as urgent."""
        first = chosen[0]
        priority, end, known = self._wanted[first].priority, first + 1, set(chosen)
        most = 1 if first in self._single else self._most()
        while (
            end - first < most
            and end in known
            and end not in self._single
            and self._wanted[end].priority == priority
        ):
            end += 1
        return range(first, end)

    def _most(self) -> int:
        """Pieces of a range, at most."""
        rate = self._servers.rate or 0.0
        size = min(max(int(rate * RANGE_SECONDS), MIN_RANGE), MAX_RANGE)
        return max(1, size // self._transfer.stored.layout.piece_length)

    def _shares(self, now: float) -> bool:
        """Whether web seeds are asked beside peers; not in a crowd, which is to have each piece
        of the network once, and from each other."""
        return self._servers.seeds and not self._transfer.crowd and self._peers_bring(now)

    def _peers_bring(self, now: float) -> bool:
        """Whether peers send, or may be about to: they are given a second, once, until they have
        sent something. Where BitTorrent is blocked connections come up, and break, for ever."""
        if now - self._peers.heard_at < SILENT_SECONDS:
            self._silent = False
            return True
        waiting = now - self._wanted_since < SILENT_SECONDS and self._peers.hopeful()
        self._silent = self._silent or not waiting
        return not self._silent

    async def _bring(self, run: range) -> None:
        """Have a server asked for pieces; what does not come is asked of peers."""
        layout = self._transfer.stored.layout
        offset = run.start * layout.piece_length
        length = min(run.stop * layout.piece_length, layout.total_size) - offset
        if self._peers.connected:
            for piece in self._swarm.requested().intersection(run):
                self._transfer.received.hedge(piece)
        self.claimed.update(run)
        self._kept.difference_update(run)
        self._swarm.ask_peers(list(run), IDLE)
        given: set[int] = set()
        try:
            with plain_errors():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._hedge, run)
                    came = await self._servers.get(offset, length)
                    nursery.cancel_scope.cancel()
            self._count(offset, came)
            given = self._take(run, came)
        except NotHereError:
            self._note_absent(run)
        except P2pcloopError:
            if self._servers.ready_at() <= trio.current_time():
                self._not_before = trio.current_time() + RETRY_SECONDS
        finally:
            left = [piece for piece in run if piece not in given]
            self.claimed.difference_update(left)
            self._ask_peers(left)
            self._wake()

    async def _hedge(self, run: range) -> None:
        """Ask peers, too, for what a server does not bring soon."""
        await trio.sleep(HEDGE_SECONDS)
        if self._peers.connected:
            late = [piece for piece in run if not self._transfer.is_coming(piece)]
            for piece in late:
                self._transfer.received.hedge(piece)
            self._ask_peers(late)

    def _note_absent(self, run: range) -> None:
        """Ask for the pieces of a run one by one, and for one that nobody has not for a while."""
        if len(run) > 1:
            self._single.update(run)
        else:
            self._absent[run.start] = trio.current_time() + ABSENT_SECONDS

    def _count(self, offset: int, came: Came) -> None:
        size = len(came.data)
        self._transfer.received.on_range(offset, size, self._transfer.stored.layout.piece_length)
        self._peers.on_bytes(size)
        self._peers.on_http(came.base, len(came.data))

    def _take(self, run: range, came: Came) -> set[int]:
        """Hand over the pieces of a run, up to the first that is wrong; those that were right."""
        size = self._transfer.stored.layout.piece_length
        given: set[int] = set()
        for piece in run:
            part = came.data[(piece - run.start) * size :][:size]
            coming = self._transfer.is_coming(piece)
            if not (coming or self._transfer.on_piece_brought(piece, part)):
                came.refuse()
                break
            given.add(piece)
        return given

    # --- servers of whole files -------------------------------------------------------------

    def _whole_is_due(self) -> bool:
        """Whether to take all: somebody waits, nobody brings it, and no server has ranges."""
        now = trio.current_time()
        if self._transfer.disk is None or not self._transfer.running or not self._wanted:
            return False
        late = self._servers.ready_at() == math.inf and now >= self._not_before
        return late and not self._peers_bring(now) and self._servers.whole_ready_at() <= now

    async def _bring_whole(self) -> None:
        """Take all of the content from a server that serves whole files alone, to its end: begun
        anew, it would be sent anew."""
        layout = self._transfer.stored.layout
        size, total = layout.piece_length, layout.total_size
        left, at, offset = bytearray(), 0, 0

        async def take(came: Came) -> None:
            nonlocal at, offset
            for piece in layout.pieces_of(offset, len(came.data)):
                self._transfer.received.hedge(piece)  # there is no asking for a part
            self._count(offset, came)
            offset += len(came.data)
            left.extend(came.data)
            while len(left) >= min(size, total - at * size) > 0:
                piece, at = at, at + 1
                data = bytes(left[:size])
                del left[:size]
                await self._give(piece, Came(data, came.base, came.refuse))

        try:
            await self._servers.get_whole(take)
            await self._taken(0)
        except P2pcloopError:
            self._not_before = trio.current_time() + RETRY_SECONDS

    async def _give(self, piece: int, came: Came) -> None:
        """Hand over a piece of a whole file; wait while much is not taken yet."""
        transfer = self._transfer
        if transfer.is_coming(piece):
            return
        self.claimed.add(piece)
        if not self._take(range(piece, piece + 1), came):
            self.claimed.discard(piece)
            raise NotHereError(f"{came.base} has wrong bytes")
        await self._taken(max(1, UNSAVED_BYTES // transfer.stored.layout.piece_length))

    async def _taken(self, most: int) -> None:
        """Return when libtorrent has taken all but so many pieces of what was handed over."""
        while len(self.claimed) > most and self._transfer.running:
            await self._transfer.change()
