"""The decision table of p2pcloopd.engine.fetch.policy, row by row: facts in, plan out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from p2pcloopd.engine.fetch.policy import plan, takes_exact_range
from p2pcloopd.engine.fetch.swarm import Priority
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.engine.fetch.view import Plan, RangeView, View
from p2pcloopd.engine.fetch.wants import Flight, Want

NOW = 100.0
PIECE = 1 << 14
D, R, F = Priority.DEMAND, Priority.READAHEAD, Priority.FILL
INF = math.inf


def demand(piece: int, *, age: float = 0.0, asked: bool = False, **facts: Any) -> Want:
    """A piece that a guest waits for since `age` seconds."""
    since = NOW - age
    told = {"asked": D, "asked_since": since} if asked else {}
    return Want(piece, since, demand_since=since, waiting=1, **(told | facts))


def ahead(piece: int, *, age: float = 0.0, asked: bool = False, **facts: Any) -> Want:
    """A piece that is read ahead."""
    told = {"asked": R, "asked_since": NOW - age} if asked else {}
    return Want(piece, NOW - age, ahead=1, **(told | facts))


def fill(piece: int, *, age: float = 0.0, asked: bool = False, **facts: Any) -> Want:
    """A piece that backfill wants."""
    told = {"asked": F, "asked_since": NOW - age} if asked else {}
    return Want(piece, NOW - age, fills=1, **(told | facts))


def flight(piece: int, *, age: float = 0.0, exact: bool = True, hedged: bool = False) -> Flight:
    """A range request for a piece that is under way since `age` seconds."""
    return Flight(range(piece, piece + 1), NOW - age, exact, hedged=hedged)


def decide(
    *wants: Want, part: set[int] | None = None, requested: set[int] | None = None, **facts: Any
) -> Plan:
    """Plan for these wants at `NOW`; `part` and `requested` name pieces."""
    usual: dict[str, Any] = {
        "wanted_since": NOW,
        "peers_hopeful": True,
        "flights": {want.flight for want in wants if want.flight is not None},
    }
    view = View(
        now=NOW,
        wants=wants,
        in_part=(part or set()).__contains__,
        requested=(requested or set()).__contains__,
        **(usual | facts),
    )
    return plan(view, TUNING)


SERVER: dict[str, Any] = {"exact_ready_at": -INF, "servers_ready_at": -INF}
"""A server that has ranges."""

SENDS: dict[str, Any] = {"peers_heard_at": NOW - 0.1, "bytes_at": NOW - 0.1}
"""Peers that send."""

SEED: dict[str, Any] = {"servers_ready_at": -INF, "seeds": True} | SENDS
"""A web seed beside peers that send; exact ranges are not asked for just now."""

CROWD: dict[str, Any] = {"crowd": 2, "copies": [0, 1] * 200} | SENDS
"""Two others that have every odd piece."""

DISPATCH: dict[str, Any] = CROWD | {"dispatch_ready": True}
EXCLUSIVE: dict[str, Any] = DISPATCH | {"exclusive": True}
LARGE: dict[str, Any] = EXCLUSIVE | {"crowd": 15}
THEIRS: dict[str, Any] = EXCLUSIVE | {"mine": lambda _piece: False}


# --- what peers are told --------------------------------------------------------------------------

PEERS = {
    "nothing is wanted": (decide(), {}),
    "a guest waits": (decide(demand(5)), {5: D}),
    "a stream": (decide(*map(ahead, range(20))), dict.fromkeys(range(8), R)),
    "a stream, a guest waits": (
        decide(*map(ahead, range(20)), reader_waits=True),
        dict.fromkeys(range(4), R),
    ),
    "a stream, a large window": (
        decide(*map(ahead, range(40)), window=20 * PIECE),
        dict.fromkeys(range(20), R),
    ),
    "a stream, pieces larger than the window": (
        decide(ahead(3), ahead(4), piece_length=1 << 20),
        {3: R},
    ),
    "a window that shrank keeps its pieces": (
        decide(*(ahead(n, asked=True) for n in range(9)), ahead(9), reader_waits=True),
        dict.fromkeys(range(9), R),
    ),
    "a window of which some arrived": (
        decide(*(ahead(n, asked=True) for n in range(5, 8)), *map(ahead, range(8, 20))),
        dict.fromkeys(range(5, 13), R),
    ),
    "a guest and a stream": (decide(ahead(1), demand(0), ahead(2)), {0: D, 1: R, 2: R}),
    "backfill": (decide(fill(1), fill(2)), {1: F, 2: F}),
    "backfill behind a guest": (decide(fill(1), demand(2)), {1: F, 2: D}),
    "a guest, a server": (decide(demand(5), **SERVER), {}),
    "a guest, a server, a peer was asked": (
        decide(demand(5, asked=True), requested={5}, **SERVER),
        {5: D},
    ),
    "a guest, a server, a peer was told and not asked": (
        decide(demand(5, asked=True), **SERVER),
        {},
    ),
    "a stalled guest, a server": (
        decide(demand(5, asked=True, stalled=True), requested={5}, **SERVER),
        {5: D},
    ),
    "bytes are here": (decide(ahead(5), ahead(6), part={5}, **SERVER | SENDS), {6: R}),
    "bytes are here, no server": (decide(fill(5), part={5}), {5: F}),
    "bytes are here, a peer was asked": (
        decide(ahead(5, asked=True), part={5}, requested={5}, **SERVER | SENDS),
        {5: R},
    ),
    "a request is under way": (decide(demand(5, flight=flight(5, age=0.9)), **SERVER), {}),
    "a request is silent": (decide(demand(5, flight=flight(5, age=1.0)), **SERVER), {5: D}),
    "a request is slow, and servers send": (
        decide(demand(5, flight=flight(5, age=9)), servers_heard_at=NOW - 0.5, **SERVER),
        {},
    ),
    "a request takes ten seconds": (
        decide(demand(5, flight=flight(5, age=10)), servers_heard_at=NOW - 0.5, **SERVER),
        {5: D},
    ),
    "a hedged request stays hedged": (
        decide(demand(5, flight=flight(5, age=2, hedged=True)), servers_heard_at=NOW, **SERVER),
        {5: D},
    ),
    "a request of the queue, two seconds": (
        decide(ahead(5, flight=flight(5, age=2, exact=False)), peers_connected=True, **SERVER),
        {5: R},
    ),
    "a request of the queue, no peer": (
        decide(ahead(5, flight=flight(5, age=9, exact=False)), **SERVER),
        {},
    ),
    "a crowd": (
        decide(*map(ahead, range(12)), mine=lambda piece: piece in (6, 8), **CROWD),
        dict.fromkeys([1, 3, 5, 7, 9, 11, 6, 8], R),
    ),
    "a crowd, four of what only seeders have": (
        decide(*map(ahead, range(0, 24, 2)), **CROWD),
        dict.fromkeys(range(0, 8, 2), R),
    ),
    "a crowd, the shares of others where nothing else is left": (
        decide(*map(ahead, range(0, 24, 2)), mine=lambda _piece: False, **CROWD),
        dict.fromkeys(range(0, 8, 2), R),
    ),
    "a crowd, not while own pieces are on their way": (
        decide(ahead(0, asked=True), ahead(2), mine=lambda _piece: False, **CROWD),
        {0: R},
    ),
    "a crowd, 2 MiB of what others have": (
        decide(*map(ahead, range(1, 400, 2)), **CROWD),
        dict.fromkeys(range(1, 257, 2), R),
    ),
    "a crowd, what they have is not known": (
        decide(ahead(0, asked=True), ahead(1), **CROWD | {"copies": ()}),
        {0: R},
    ),
    "a crowd, a guest just came": (decide(demand(4), ahead(0), **CROWD), {4: R, 0: R}),
    "a crowd, a guest waits": (decide(demand(4, age=0.25), **CROWD), {4: D}),
    "a crowd, a guest waits, a server": (decide(demand(4, age=1), **CROWD | SERVER), {4: D}),
    "a dispatcher": (decide(*map(ahead, range(4)), **DISPATCH), {1: R, 3: R}),
    "a dispatcher, what was asked for stays so": (
        decide(ahead(0, asked=True), ahead(2), **DISPATCH),
        {0: R},
    ),
    "exclusive mode": (
        decide(*map(ahead, range(4)), **EXCLUSIVE),
        dict.fromkeys(range(4), R),
    ),
    "exclusive mode, a window of what others have": (
        decide(*map(ahead, range(1, 40, 2)), **EXCLUSIVE),
        dict.fromkeys(range(1, 17, 2), R),
    ),
    "exclusive mode, a guest": (decide(demand(4), **EXCLUSIVE), {4: D}),
    "a web seed": (
        decide(*map(fill, range(9)), **SEED | {"servers_ready_at": NOW + 1}),
        dict.fromkeys(range(5), F),
    ),
    "a web seed, nothing else for peers": (
        decide(fill(7, for_server=True), fill(8, for_server=True), servers_ready_at=NOW + 1,
               seeds=True, **SENDS),
        {7: F, 8: F},
    ),
    "a web seed in a crowd": (
        decide(*map(fill, range(4)), **SEED | CROWD),
        dict.fromkeys(range(4), F),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "told"), PEERS.values(), ids=PEERS)
def test_peers_are_told_of(made: Plan, told: dict[int, Priority]) -> None:
    assert made.peers == told


# --- what servers and dispatchers are asked for ---------------------------------------------------

EXACT = {
    "a guest": (decide(demand(5), **SERVER), [5]),
    "a guest, no server": (decide(demand(5)), []),
    "a guest, a peer was asked": (decide(demand(5, asked=True), requested={5}, **SERVER), []),
    "a stalled guest": (decide(demand(5, stalled=True, asked=True), requested={5}, **SERVER), [5]),
    "a stream": (decide(ahead(5), **SERVER | SENDS), []),
    "bytes are here": (decide(ahead(5), fill(6), part={5, 6}, **SERVER), [5, 6]),
    "a guest in a crowd": (decide(demand(4, age=1), **CROWD | SERVER), []),
    "a guest in exclusive mode": (decide(demand(4, age=1.4), **EXCLUSIVE | SERVER), []),
    "a guest in exclusive mode, late": (decide(demand(4, age=1.5), **EXCLUSIVE | SERVER), [4]),
    "a guest in a large crowd": (decide(demand(4, age=4.7), **LARGE | SERVER), []),
    "a guest in a large crowd, late": (decide(demand(4, age=4.75), **LARGE | SERVER), [4]),
    "the share of another": (decide(demand(4, age=2.9), **THEIRS | SERVER), []),
    "the share of another, late": (decide(demand(4, age=3), **THEIRS | SERVER), [4]),
    "a client was asked": (
        decide(demand(4, age=2.9), requested={4}, **EXCLUSIVE | SERVER),
        [],
    ),
    "a client was asked, late": (
        decide(demand(4, age=3), requested={4}, **EXCLUSIVE | SERVER),
        [4],
    ),
    "a request is under way": (decide(demand(5, flight=flight(5)), **SERVER), []),
}

RANGES = {
    "no peer may come": (
        decide(*map(fill, range(20)), servers_ready_at=-INF, peers_hopeful=False),
        [range(16), range(16, 20)],
    ),
    "a peer may come": (decide(fill(1), servers_ready_at=-INF), []),
    "the one known peer may come": (
        decide(*map(ahead, range(20)), servers_ready_at=-INF, sole_peer=True),
        [range(8)],
    ),
    "the one known peer may come, a guest waits": (
        decide(*map(ahead, range(20)), servers_ready_at=-INF, sole_peer=True, reader_waits=True),
        [range(4)],
    ),
    "the one known peer was asked for some": (
        decide(ahead(0, asked=True), ahead(1, asked=True), ahead(2), servers_ready_at=-INF,
               sole_peer=True, requested={0}),
        [range(1, 3)],
    ),
    "the one known peer may come, a request is under way": (
        decide(*map(ahead, range(20)), servers_ready_at=-INF, sole_peer=True,
               flights=[flight(40, exact=False)]),
        [],
    ),
    "the one known peer may come, no server is ready": (
        decide(*map(ahead, range(20)), servers_ready_at=NOW + 1, sole_peer=True),
        [],
    ),
    "the one known peer sends": (
        decide(*map(ahead, range(20)), servers_ready_at=-INF, sole_peer=True, **SENDS),
        [],
    ),
    "the one known peer is connected": (
        decide(*map(ahead, range(20)), servers_ready_at=-INF, sole_peer=True,
               peers_connected=True),
        [],
    ),
    "several peers may come": (decide(*map(ahead, range(20)), servers_ready_at=-INF), []),
    "a peer may come, a second passed": (
        decide(fill(1), servers_ready_at=-INF, wanted_since=NOW - 1),
        [range(1, 2)],
    ),
    "peers were silent before": (
        decide(fill(1), servers_ready_at=-INF, peers_silent=True),
        [range(1, 2)],
    ),
    "peers send": (decide(fill(1), **SENDS, servers_ready_at=-INF), []),
    "most urgent first": (
        decide(fill(1), fill(2), demand(30), servers_ready_at=-INF, peers_silent=True),
        [range(30, 31), range(1, 3)],
    ),
    "four at once": (
        decide(*map(fill, range(0, 20, 2)), servers_ready_at=-INF, peers_silent=True),
        [range(n, n + 1) for n in range(0, 8, 2)],
    ),
    "others are under way": (
        decide(*map(fill, range(0, 20, 2)), servers_ready_at=-INF, peers_silent=True,
               flights=[flight(40, exact=False)] * 3),
        [range(1)],
    ),
    "none has it": (
        decide(fill(1, absent_until=NOW + 1), fill(2), servers_ready_at=-INF, peers_silent=True),
        [range(2, 3)],
    ),
    "its neighbour was not there": (
        decide(fill(1, single=True), fill(2, single=True), servers_ready_at=-INF,
               peers_silent=True),
        [range(1, 2), range(2, 3)],
    ),
    "half for a web seed": (decide(*map(fill, range(9)), **SEED), [range(5, 9)]),
    "late for a web seed": (
        decide(fill(1, asked=True, age=3), fill(2, asked=True, age=2), **SEED),
        [range(1, 2)],
    ),
    "a web seed in a crowd": (decide(*map(fill, range(9)), **SEED | CROWD), []),
}  # fmt: skip

ASKED = {
    "a dispatcher": (decide(*map(ahead, range(6)), **DISPATCH), [0, 2, 4]),
    "a dispatcher, not what was asked for": (
        decide(ahead(0, asked=True), ahead(2), **DISPATCH),
        [2],
    ),
    "exclusive mode, a guest first": (
        decide(*(ahead(n, asked=True) for n in range(0, 6, 2)), demand(8), **EXCLUSIVE),
        [8, 0, 2, 4],
    ),
    "no dispatcher": (decide(*map(ahead, range(6)), **CROWD), []),
    "alone": (decide(ahead(0), dispatch_ready=True), []),
}


@pytest.mark.parametrize(("made", "pieces"), EXACT.values(), ids=EXACT)
def test_exact_pieces_are_asked_for(made: Plan, pieces: list[int]) -> None:
    assert made.exact == pieces


@pytest.mark.parametrize(("made", "runs"), RANGES.values(), ids=RANGES)
def test_servers_are_asked_for(made: Plan, runs: list[range]) -> None:
    assert made.ranges == runs


@pytest.mark.parametrize(("made", "pieces"), ASKED.values(), ids=ASKED)
def test_a_dispatcher_is_asked_for(made: Plan, pieces: list[int]) -> None:
    assert made.dispatch == pieces


def test_whole_files_are_taken_where_nothing_else_comes() -> None:
    whole: dict[str, Any] = {"whole_ready_at": -INF}
    assert decide(fill(1), **whole, peers_silent=True).whole
    assert not decide(fill(1), **whole, **SENDS).whole
    assert not decide(**whole, peers_silent=True).whole
    assert not decide(fill(1), **whole, servers_ready_at=NOW + 1, peers_silent=True).whole


# --- when, and for whom ---------------------------------------------------------------------------

WAKES = {
    "nothing is wanted": (decide(), INF),
    "a guest waits for peers": (decide(demand(5)), INF),
    "a request is under way": (
        decide(demand(5, flight=flight(5, age=0.25)), **SERVER | SENDS),
        NOW + 0.75,
    ),
    "a crowd looks often": (decide(ahead(1), **CROWD), NOW + TUNING.look),
    "patience in a crowd": (decide(demand(1, age=0.24), **CROWD | {"copies": ()}), NOW + 0.01),
    "readahead may stall": (decide(ahead(1, asked=True, age=0.5)), NOW + 0.5),
    "a server that is down": (
        decide(fill(1), servers_ready_at=NOW + 7, peers_silent=True),
        NOW + 7,
    ),
    "exact ranges that cool down": (decide(demand(5), exact_ready_at=NOW + 9), NOW + 9),
    "exact ranges that cool down, nothing is wanted": (decide(exact_ready_at=NOW + 9), INF),
    "peers that may come": (decide(fill(1), servers_ready_at=-INF), NOW + 1),
}


@pytest.mark.parametrize(("made", "at"), WAKES.values(), ids=WAKES)
def test_it_is_decided_anew(made: Plan, at: float) -> None:
    assert made.wake_at == pytest.approx(at)


def test_named_peers_are_dialled_for_what_is_asked_of_them() -> None:
    assert decide(demand(5)).dial
    assert decide(ahead(5)).dial
    assert not decide(fill(5)).dial
    assert decide(fill(5, dials=1)).dial
    assert not decide(demand(5), **SERVER).dial
    assert decide(demand(5, flight=flight(5, age=1)), **SERVER).dial


def test_what_stalls_is_asked_for_anew() -> None:
    assert decide(demand(5, asked=True, stalled=True)).nudge == [5]
    assert decide(demand(5, asked=True, age=9)).nudge == []
    assert decide(ahead(5, asked=True, age=1)).nudge == [5]
    assert decide(ahead(5, asked=True, age=9), bytes_at=NOW - 0.5).nudge == []
    assert decide(ahead(5, asked=True, age=9), nudged_at=NOW - 0.5).nudge == []
    silent = {"peers_heard_at": NOW - 5, "bytes_at": NOW - 5, "wanted_since": NOW - 5}
    assert decide(ahead(0, age=5), **DISPATCH | silent, dispatching=True).dispatch_stalls
    assert not decide(ahead(0, age=5), **DISPATCH, dispatching=True).dispatch_stalls


@pytest.mark.parametrize("others", [0, 1, 2, 8, 16])
def test_the_more_clients_share_an_uplink_the_longer_are_the_gaps(others: int) -> None:
    """What each gets of a slow seeder comes now and then; nothing is wrong yet."""
    gap = 1 + others * TUNING.crowd_gap

    def decided(since: float) -> Plan:
        quiet = {"peers_heard_at": NOW - since, "bytes_at": NOW - since, "wanted_since": NOW - 60}
        crowd = {"crowd": others, "copies": [1] * 9, "peers_connected": True}
        dispatch = {"dispatch_ready": bool(others), "dispatching": True}
        facts: dict[str, Any] = SERVER | quiet | crowd | dispatch
        return decide(ahead(0, asked=True, age=60), **facts)

    patient, late = decided(gap - 0.01), decided(gap + 0.01)
    assert (patient.ranges, patient.nudge, patient.dispatch_stalls) == ([], [], False)
    assert (late.ranges, late.dispatch_stalls) == ([range(1)], True)


def test_what_a_dispatcher_gives_counts_as_sent_by_peers() -> None:
    """The others have it from this client: a server is asked for nothing beside it."""
    facts = SERVER | {"peers_heard_at": NOW - 60, "bytes_at": NOW - 0.1, "wanted_since": NOW - 60}
    wanted = ahead(0, asked=True, age=60)
    assert decide(wanted, **EXCLUSIVE | facts).ranges == []
    assert decide(wanted, **DISPATCH | facts).ranges == [range(1)]


@pytest.mark.parametrize(
    ("facts", "exact"),
    [
        ({}, True),
        ({"known": False}, False),
        ({"room": False}, False),
        ({"exact_ready": False}, False),
        ({"coming": True}, False),
        ({"crowd": 1}, False),
        ({"crowd": 1, "piece_length": 1 << 17}, True),
        ({"crowd": 3, "piece_length": 1 << 17}, False),
    ],
)
def test_a_read_takes_its_exact_range(facts: dict[str, Any], exact: bool) -> None:
    alone = RangeView(
        known=True, room=True, exact_ready=True, crowd=0, piece_length=PIECE, coming=False
    )
    assert takes_exact_range(replace(alone, **facts), Tuning()) is exact
