"""The facts that a decision depends on, and the decision: plain data on both sides of policy.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import field
from itertools import chain

from p2pcloop.frozen import dataclass
from p2pcloopd.engine.fetch.swarm import Priority
from p2pcloopd.engine.fetch.wants import Flight, Want, side_by_side


@dataclass(slots=True)
class View:
    """What is known of one torrent at one moment. Times are trio's, in seconds.

    Attributes:
        wants: of pieces that are not here, in the order in which they were wanted first.
        in_part: whether bytes of a piece are here, or on their way by themselves.
        requested: whether a peer was asked for a block of a piece, or has sent one; it is known
            only where a server may be asked.
        reader_waits: whether a guest waits, for this torrent or another.
        wanted_since: since when something is wanted.
        piece_length: bytes of a piece.

        window: bytes that peers are asked for at once.
        peers_heard_at: when a peer sent content last; bytes_at: when anything did.
        peers_hopeful: a peer is connected, or one that was named may be yet.
        peers_connected: a peer is connected.
        sole_peer: no more than one peer is known, and no tracker to ask for others.
        peers_silent: what the last plan said of it.
        nudged_at: when what stalls was asked for anew.

        exact_ready_at: when a server may be asked for exact ranges; exact_ready: it may be now.
        servers_ready_at, whole_ready_at: when one may be asked for a range; for whole files.
        seeds: a server is a web seed.
        range_pieces: how many pieces a range request asks for at most, but for exact ones.
        flights: the range requests that are under way.
        servers_heard_at: when bytes came from servers last.

        crowd: how many clients want the same now and have not all of it.
        copies: how many of these have each piece; empty where that is not known yet.
        mine: whether a piece is this node's share.
        dispatch_ready: a dispatcher can be asked, as far as is known.
        exclusive: it did dispatch, and its host is no peer meanwhile.
        dispatching: it was asked for something.
    """

    now: float
    wants: Collection[Want]
    in_part: Callable[[int], bool]
    requested: Callable[[int], bool]
    reader_waits: bool = False
    wanted_since: float = 0.0
    piece_length: int = 1 << 14

    window: int = 128 << 10
    peers_heard_at: float = -math.inf
    bytes_at: float = -math.inf
    peers_hopeful: bool = False
    peers_connected: bool = False
    sole_peer: bool = False
    peers_silent: bool = False
    nudged_at: float = -math.inf

    exact_ready_at: float = math.inf
    servers_ready_at: float = math.inf
    whole_ready_at: float = math.inf
    seeds: bool = False
    range_pieces: int = 16
    flights: Collection[Flight] = ()
    servers_heard_at: float = -math.inf

    crowd: int = 0
    copies: Sequence[int] = ()
    mine: Callable[[int], bool] = lambda _piece: True
    dispatch_ready: bool = False
    exclusive: bool = False
    dispatching: bool = False

    exact_ready: bool = field(init=False)

    def __post_init__(self) -> None:
        self.exact_ready = self.exact_ready_at <= self.now

    @property
    def exact_cools_until(self) -> float:
        """When what is wanted can be asked for by exact ranges; infinity where it can be now."""
        return math.inf if self.exact_ready or not self.wants else self.exact_ready_at

    @property
    def ranges_flying(self) -> int:
        """How many range requests for what is not needed at once are under way."""
        return sum(not flight.exact for flight in self.flights)


@dataclass(slots=True)
class Plan:
    """What should be asked for now, and of which source.

    Attributes:
        peers: how urgently peers are to be told of each piece; of no others.
        exact: pieces to ask of a server at once, by the exact bytes that are missing.
        ranges: runs of pieces to ask of servers.
        hedge: flights that peers are asked for as well from now on.
        whole: ask a server for whole files, since none has ranges.
        for_server: pieces that are kept for a web seed.
        dispatch: pieces to ask of the dispatcher, the one that is wanted most first.
        clients: how many clients share the dispatcher.
        dispatch_stalls: leave the dispatcher alone for a while.
        nudge: pieces that peers are told of anew, and idle peers are asked for, too.
        dial: try the peers that the user named.
        silent: peers send nothing.
        wake_at: when to decide anew, if nothing happens before.
    """

    peers: dict[int, Priority] = field(default_factory=dict)
    exact: list[int] = field(default_factory=list)
    ranges: list[range] = field(default_factory=list)
    hedge: list[Flight] = field(default_factory=list)
    whole: bool = False
    for_server: set[int] = field(default_factory=set)
    dispatch: list[int] = field(default_factory=list)
    clients: int = 1
    dispatch_stalls: bool = False
    nudge: list[int] = field(default_factory=list)
    dial: bool = False
    silent: bool = False
    wake_at: float = math.inf

    def read_ahead(self, wants: Iterable[Want]) -> None:
        """Have peers told that these are read ahead."""
        for want in wants:
            self.peers[want.piece] = Priority.READAHEAD

    def pieces(self) -> set[int]:
        """All that is asked for."""
        return set(self.peers).union(self.exact, self.dispatch, *self.ranges)

    def leave_out(self, gone: Collection[int]) -> None:
        """Ask for none of these pieces."""
        if not gone:
            return
        self.peers = {p: priority for p, priority in self.peers.items() if p not in gone}
        self.exact = [piece for piece in self.exact if piece not in gone]
        runs = [side_by_side(set(run).difference(gone), len(run)) for run in self.ranges]
        self.ranges = list(chain.from_iterable(runs))
        self.dispatch = [piece for piece in self.dispatch if piece not in gone]
        self.nudge = [piece for piece in self.nudge if piece not in gone]

    def wake(self, at: float) -> None:
        """Decide anew at this time, at the latest."""
        self.wake_at = min(self.wake_at, at)


@dataclass(frozen=True, slots=True)
class RangeView:
    """What is known of a range that a reader wants, and that is not here.

    Attributes:
        known: whether the metadata is here.
        room: whether its bytes can be kept.
        exact_ready, crowd, piece_length: as in `View`.
        coming: whether a piece of it is here, wanted by readers, or on its way.
    """

    known: bool
    room: bool
    exact_ready: bool
    crowd: int
    piece_length: int
    coming: bool
