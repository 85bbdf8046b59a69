"""The fetch loop of one torrent: collect the facts, plan (policy.py), apply the difference.

It runs whenever something of the torrent changes, or the last plan's time has come. It also takes
the news of libtorrent, and gives readers what arrives.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import ExitStack

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloopd.engine.disk.holes import is_linked
from p2pcloopd.engine.fetch.asked import Asked
from p2pcloopd.engine.fetch.crowd import Crowd
from p2pcloopd.engine.fetch.demand import Demand
from p2pcloopd.engine.fetch.dispatch import Dispatch
from p2pcloopd.engine.fetch.peers import Peers
from p2pcloopd.engine.fetch.policy import plan, takes_exact_range
from p2pcloopd.engine.fetch.range_requests import RangeRequests
from p2pcloopd.engine.fetch.store import Store
from p2pcloopd.engine.fetch.swarm import Priority, Swarm
from p2pcloopd.engine.fetch.tuning import Tuning
from p2pcloopd.engine.fetch.view import Plan, RangeView, View
from p2pcloopd.engine.fetch.wants import Want, Wants, side_by_side
from p2pcloopd.tasks import Pulse


class Fetcher:
    """Fetches the pieces of one torrent that are wanted.

    Attributes:
        wants: what is wanted.
        ranges, dispatch: the sources beside the swarm.
        crowd: who else fetches it.
        read: set when a reader wants what is not here; read_at: when that was last; last_read: the
            first piece of it.
    """

    def __init__(
        self, swarm: Swarm, peers: Peers, store: Store, demand: Demand, tuning: Tuning
    ) -> None:
        """`demand` tells of the readers of all torrents."""
        self.wants = Wants(self._on_wants, self._on_gone, tuning)
        self.ranges = RangeRequests(store, peers, self.wants.table, self.give, tuning)
        self.dispatch = Dispatch(self.ranges, store, self.give, tuning)
        self.crowd = Crowd(swarm, tuning)
        self.read = trio.Event()
        self.read_at = -math.inf
        self.last_read = 0
        self._swarm = swarm
        self._asked = Asked(swarm)
        self._peers = peers
        self._store = store
        self._demand = demand
        self._tuning = tuning
        self._needed = ExitStack()
        self._dials = self._hurries = False
        self._crowded: tuple[bool, frozenset[str]] = (False, frozenset())
        self._foreign, self._foreign_at = False, -math.inf
        self._connections = 0
        self._wanted, self._wanted_since = False, 0.0
        self._silent = False
        self._nudged_at = -math.inf
        self._heard, self._heard_at = 0, -math.inf
        self._wants_changed = Pulse()

    # --- the loop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask for what is wanted, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.ranges.run)
            nursery.start_soon(self.dispatch.run)
            await self._plan_for_ever()

    async def _plan_for_ever(self) -> None:
        with self._needed:
            while True:
                wanted, changed = self._wants_changed.next, self._store.changed.next
                if self._at_rest():
                    await wanted.wait()
                    continue
                wake_at = self.step()
                with trio.move_on_at(wake_at):
                    await changed.wait()

    def step(self) -> float:
        """Look, plan and apply it; when to do it again at the latest, in trio's time."""
        if self._store.disk is None or not self._store.running:
            return math.inf
        made = plan(self._look(), self._tuning)
        self._apply(made)
        return min(made.wake_at, self.crowd.ends_at if self.crowd else math.inf)

    def _at_rest(self) -> bool:
        """Whether nothing is wanted and nothing of the last plan is left: a plan would be empty.

        So it is where a guest reads exact ranges alone. They arrive by the hundred, and only a want
        ends the rest.
        """
        if self.wants.table or self._dials or self.dispatch.busy or self._crowded[0] or self.crowd:
            return False
        self._wanted = False
        return True

    def _look(self) -> View:
        now = trio.current_time()
        store, ranges, servers = self._store, self.ranges, self.ranges.servers
        # First of all: it brings news.
        requested = self._asked.requested() if servers.ready_at() <= now else set()
        wants = [want for want in self.wants.table.values() if not store.is_coming(want.piece)]
        self._share_flights(wants)
        crowded = bool(self.crowd)
        self.crowd.look(now, expecting=any(w.ahead or (crowded and w.waiting) for w in wants))
        return View(
            now=now,
            wants=wants,
            in_part=store.in_part,
            requested=requested.__contains__,
            reader_waits=self._demand.busy,
            wanted_since=self._since_wanted(now, wants),
            piece_length=store.stored.layout.piece_length,
            window=self.window(),
            peers_heard_at=self._peers.heard_at,
            bytes_at=self._peers.bytes_at,
            peers_hopeful=self._peers.hopeful(),
            peers_connected=self._peers.connected,
            sole_peer=self._peers.sole,
            peers_silent=self._silent,
            nudged_at=self._nudged_at,
            exact_ready_at=ranges.exact_ready_at(),
            servers_ready_at=max(servers.ready_at(), ranges.not_before),
            whole_ready_at=max(servers.whole_ready_at(), ranges.not_before),
            seeds=servers.seeds,
            range_pieces=self._range_pieces(),
            flights=ranges.flights,
            servers_heard_at=self._servers_heard_at(now),
            crowd=len(self.crowd),
            copies=self.crowd.copies,
            mine=self.crowd.mine,
            dispatch_ready=self.dispatch.ready(now),
            exclusive=bool(self.exclusive_hosts()),
            dispatching=self.dispatch.busy,
        )

    def _share_flights(self, wants: Iterable[Want]) -> None:
        """Have pieces that are wanted once more wait for the request that is under way."""
        flying = {piece: flight for flight in self.ranges.flights for piece in flight.run}
        if flying:
            for want in wants:
                want.flight = want.flight or flying.get(want.piece)

    def _since_wanted(self, now: float, wants: Collection[Want]) -> float:
        """Since when something is wanted."""
        if not (wants and self._wanted):
            self._wanted, self._wanted_since = bool(wants), now
        return self._wanted_since

    def _servers_heard_at(self, now: float) -> float:
        """When bytes arrived from servers last: now, if some did since the last look."""
        heard = self.ranges.servers.heard()
        if heard != self._heard:
            self._heard, self._heard_at = heard, now
        return self._heard_at

    def exclusive_hosts(self) -> frozenset[str]:
        """The hosts that are no peers: a dispatcher would be asked for what other clients have.

        Not where another client has its address (NAT, loopback).
        """
        return (
            self.dispatch.hosts.difference(self.crowd.others.hosts) if self.crowd else frozenset()
        )

    def _range_pieces(self) -> int:
        """How many pieces a range request asks for at most."""
        tuning = self._tuning
        size = int((self.ranges.servers.rate or 0.0) * tuning.range_seconds)
        size = min(max(size, tuning.min_range), tuning.max_range)
        return max(1, size // self._store.stored.layout.piece_length)

    def window(self) -> int:
        """Bytes that peers are asked for at once."""
        window = self._peers.window()
        if not self.foreign():
            return window
        small = self._store.stored.layout.total_size <= self._tuning.small_torrent
        return max(window, self._tuning.small_torrent if small else self._tuning.foreign_window)

    def foreign(self) -> bool:
        """Whether the peers that are connected are all of other programs."""
        since = trio.current_time() - self._foreign_at
        look = self._tuning.foreign_look if self._foreign else self._tuning.unknown_look
        if since >= look or self._connections != self._peers.connections:
            self._connections = self._peers.connections
            self._foreign = self._store.running and self._swarm.foreign()
            self._foreign_at = trio.current_time()
        return self._foreign

    # --- applying a plan --------------------------------------------------------------------

    def _apply(self, made: Plan) -> None:
        self._silent = made.silent
        crowded = (bool(self.crowd), self.exclusive_hosts())
        if crowded != self._crowded:
            self._crowded = crowded
            self._swarm.crowd(on=crowded[0], without=crowded[1])
        table = self.wants.table
        for want in table.values():
            want.for_server = want.piece in made.for_server
        self._withdraw(made)
        for flight in made.hedge:
            flight.hedged = True
            for piece in flight.run:
                self._store.received.hedge(piece)
        self._fly(made)
        self._ask_peers(made)
        self._nudge(made.nudge)
        self.dispatch.want(made.dispatch, made.clients)
        if made.dispatch_stalls:
            self.dispatch.leave_alone()
        if made.whole:
            self.ranges.start_whole()
        self._dial(on=made.dial)
        if made.peers and not self._hurries:
            self._peers.hurry()
        self._hurries = bool(made.peers)

    def _withdraw(self, made: Plan) -> None:
        """Tell peers no more of what a server is asked for.

        libtorrent may have been told of a piece and have asked no peer yet. So it is told first,
        and looked at for the last time: what a peer was asked for by then stays with it, and what
        one has sent is asked of no source.
        """
        asked = [
            want
            for want in self.wants.table.values()
            if want.asked is not Priority.IDLE
            and want.piece not in made.peers
            and not self._store.is_coming(want.piece)
        ]
        if not asked:
            return
        for want in self._take_back(asked):
            if want.piece in made.exact:
                made.exact.remove(want.piece)
                made.peers[want.piece] = want.priority
            elif self._peers.connected:
                self._store.received.hedge(want.piece)
        here, table = self._store.is_coming, self.wants.table
        made.leave_out({p for p in made.pieces() if here(p) or p not in table})

    def _take_back(self, wants: Collection[Want]) -> list[Want]:
        """Tell libtorrent no more of some wants; those that a peer was asked for by then."""
        pieces = [want.piece for want in wants]
        self._asked.tell(pieces, Priority.IDLE)
        for want in wants:
            want.asked, want.asked_since = Priority.IDLE, math.inf
        requested = self._asked.of_peers(pieces)
        return [want for want in wants if want.piece in requested]

    def _fly(self, made: Plan) -> None:
        """Begin the range requests of a plan."""
        most = max(1, self._tuning.exact_range // self._store.stored.layout.piece_length)
        by_kind: dict[tuple[bool, bool], list[int]] = defaultdict(list)
        for piece in made.exact:
            hurried = bool(self.wants.table[piece].waiting)
            by_kind[hurried, piece in made.peers].append(piece)
        for (_, hedged), pieces in sorted(by_kind.items(), reverse=True):
            for run in side_by_side(pieces, most):
                self.ranges.start(run, exact=True, hedged=hedged)
        for run in made.ranges:
            self.ranges.start(run, exact=False)

    def _ask_peers(self, made: Plan) -> None:
        now = trio.current_time()
        fresh: dict[Priority, list[int]] = defaultdict(list)
        for piece, priority in made.peers.items():
            want = self.wants.table[piece]
            if want.asked is not priority:
                if want.asked is Priority.IDLE:
                    want.asked_since = now
                want.asked = priority
                fresh[priority].append(piece)
        for priority in sorted(fresh, reverse=True):
            self._asked.tell(fresh[priority], priority)

    def _nudge(self, pieces: Collection[int]) -> None:
        """Have idle peers asked too for what does not come, and peers told of it anew.

        libtorrent looks through its peers at once only for a piece that was not wanted before.
        """
        if not pieces:
            return
        self._nudged_at = trio.current_time()
        self._swarm.insist()
        by_priority: dict[Priority, list[int]] = defaultdict(list)
        for piece in pieces:
            self._store.received.hedge(piece)
            want = self.wants.table[piece]
            want.stalled = False
            by_priority[want.asked].append(piece)
        self._asked.tell(pieces, Priority.IDLE)
        for priority in sorted(by_priority, reverse=True):
            self._asked.tell(by_priority[priority], priority)

    def _dial(self, *, on: bool) -> None:
        """Have peers tried from now on, or not.

        Not before they are asked for something: libtorrent gives up peers of a torrent that wants
        nothing when they are connected to.
        """
        if on and not self._dials:
            self._needed.enter_context(self._peers.needed())
        elif self._dials and not on:
            self._needed.close()
        self._dials = on

    # --- readers ----------------------------------------------------------------------------

    async def get(
        self, missing: list[int], *, keep: bool, ahead: bool = False
    ) -> dict[int, bytes | None]:
        """Wait for pieces, as `Wants.get`."""
        self.record_read(missing[0])
        if ahead:
            return await self.wants.get(missing, keep=keep, ahead=True)
        with self._demand.waiting():
            return await self.wants.get(missing, keep=keep)

    def record_read(self, piece: int) -> None:
        """Note that a piece is read, or about to be."""
        self.read_at, self.last_read = trio.current_time(), piece
        self.read.set()

    def takes_exact_range(self, offset: int, length: int) -> bool:
        """Whether a read asks a server for exactly its bytes."""
        store, disk = self._store, self._store.disk
        view = RangeView(
            known=disk is not None and offset + length <= disk.layout.total_size,
            room=length <= store.provisional.room,
            exact_ready=self.ranges.exact_ready_at() <= trio.current_time(),
            crowd=len(self.crowd),
            piece_length=0 if disk is None else disk.layout.piece_length,
            coming=self.is_coming(offset, length),
        )
        return takes_exact_range(view, self._tuning) and self._leave_to_server(offset, length)

    def _leave_to_server(self, offset: int, length: int) -> bool:
        """Tell peers no more of the pieces of a range; whether none of them comes from one.

        libtorrent may ask a peer at any moment for what it was told of. What a plan would take back
        later, when the server was asked already, would come twice.
        """
        pieces, table = self._store.stored.layout.pieces_of(offset, length), self.wants.table
        told = [table[p] for p in pieces if p in table and table[p].asked is not Priority.IDLE]
        if not told:
            return True
        self._store.changed.notify()
        return not self._take_back(told) and not any(map(self._store.is_coming, pieces))

    def is_coming(self, offset: int, length: int) -> bool:
        """Whether a piece of a range is here, wanted by a reader, or on its way to become whole."""
        disk = self._store.disk
        if disk is None or offset + length > disk.layout.total_size:
            return False
        pieces = disk.layout.pieces_of(offset, length)
        # First of all: it brings news.
        if self._asked.of_peers(pieces) or any(map(self._store.is_coming, pieces)):
            return True
        wants = [want for piece in pieces if (want := self.wants.table.get(piece)) is not None]
        return any(want.waiting or want.ahead or want.flight is not None for want in wants)

    def fail(self, error: P2pcloopError) -> None:
        """Tell all readers that their pieces cannot be had."""
        asked = [p for p in self.wants.read if self.wants.table[p].asked is not Priority.IDLE]
        self.wants.fail(error)
        if self._store.running:
            self._asked.tell(asked, Priority.IDLE)
        self._store.changed.notify()

    @property
    def saved(self) -> bool:
        """Whether nothing arrived, or is about to, that is not durable."""
        asked = any(want.asked is not Priority.IDLE for want in self.wants.table.values())
        return self._store.saved and not asked and not self.ranges.flights

    def evictable(self) -> bool:
        """Whether pieces may go: no client waits for any, and the files are ours alone."""
        store = self._store
        wanted = any(w.waiting or w.ahead or w.dials for w in self.wants.table.values())
        if store.disk is None or not store.running or wanted:
            return False
        return not store.disk.in_place and not is_linked(store.disk.content)

    def _on_wants(self, pieces: Collection[int]) -> None:
        """Answer for what is here already, and plan anew for the rest."""
        if self._store.disk is not None and self._store.running:
            for piece in pieces:
                self._answer(piece)
        self._wants_changed.notify()
        self._store.changed.notify()

    def _answer(self, piece: int) -> None:
        if self._store.is_durable(piece):
            self.wants.deliver(piece, None)
        elif self._store.has(piece) and self.wants.has_reader(piece):
            self._swarm.read_piece(piece)

    def _on_gone(self, wants: Iterable[Want]) -> None:
        asked = [want.piece for want in wants if want.asked is not Priority.IDLE]
        if asked and self._store.running:
            here = self._store.has
            self._asked.tell([p for p in asked if not here(p)], Priority.IDLE)
        self._store.changed.notify()

    # --- the swarm --------------------------------------------------------------------------

    def join(self) -> None:
        """Join the swarm with what is durable; what is wanted is asked for again.

        Not with files that lie elsewhere and are not what they were: see engine/verify/in_place.py.
        """
        store, disk = self._store, self._store.disk
        if disk is not None and disk.fault is not None:
            return
        info = None if disk is None else disk.info
        whole = disk is not None and disk.have.complete()
        have = None if whole else [] if disk is None else disk.have.to_list()
        held = {} if disk is None else disk.content.held()
        self._asked.clear()
        self._swarm.start(info, have, self._peers.sources, held)
        store.compared_since = trio.current_time() if whole else -math.inf
        store.running = True
        self._crowded = (False, frozenset())
        self._peers.look_again()
        self._peers.try_again(begun=info is None)
        for want in tuple(self.wants.table.values()):
            want.asked, want.asked_since = Priority.IDLE, math.inf
            if disk is not None:
                self._answer(want.piece)
        store.changed.notify()

    async def leave(self) -> None:
        """Leave the swarm and forget what has arrived and is not durable."""
        self._store.running = False
        await self._swarm.stop()
        self._store.forget_arrived()
        if self._store.disk is not None:
            self.wants.forget_unless(self._store.is_durable)

    def give(self, piece: int, data: bytes) -> bool:
        """Take a piece that a server sent, if it is right, and give it to libtorrent, too.

        While the swarm is left it is dropped: in memory alone it would count as here.
        """
        if not self._store.stored.is_right(piece, data):
            return False
        if self._store.running:
            self._store.hand_over(piece, data)
            self.wants.deliver(piece, data)
            self._store.changed.notify()
        return True

    def on_piece_arrived(self, piece: int) -> None:
        """Note that libtorrent has a piece and found it right."""
        self._asked.arrived(piece)
        if not self._store.arrive(piece):
            return
        self.wants.arrived(piece)
        if self.wants.has_reader(piece):
            self._swarm.read_piece(piece)
        self._store.changed.notify()

    def on_piece_read(self, piece: int, data: bytes) -> None:
        """Take a piece that `Swarm.read_piece` was asked for."""
        self.wants.deliver(piece, data)
        self._store.changed.notify()

    def on_read_failed(self, piece: int) -> None:
        """Note that libtorrent does not have a piece that it said it had: it is to come again."""
        self._store.lose(piece)
        want = self.wants.table.get(piece)
        if want is not None:
            want.asked, want.asked_since = Priority.IDLE, math.inf
        self._store.changed.notify()

    def on_checked(self) -> None:
        """Compare notes: after libtorrent looked at the files, or when its reports were lost."""
        here, disk = self._swarm.here(), self._store.disk
        if disk is None or len(here) != disk.layout.pieces:
            return
        lost = [p for p, right in enumerate(here) if not right and disk.have.has(p, p)]
        if lost:
            self._store.suspect(lost)
        if disk.in_place:
            return
        for piece, right in enumerate(here):
            if right:
                self.on_piece_arrived(piece)
        self._store.on_flushed()
        self._on_wants(self.wants.read)
