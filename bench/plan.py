"""The processor's time for one decision of the fetch scheduler (p2pcloopd/engine/fetch/policy.py).

It decides anew whenever something of a torrent happens: in a crowd dozens of times a second, on one
thread that also moves the bytes. The facts are those of the middle of a boot: 4 MiB of a stream are
wanted in pieces of 16 KiB, of which two guests' reads wait for three. 15 other clients have two
thirds of the pieces, and were asked for a third.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from p2pcloopd.engine.fetch.policy import plan
from p2pcloopd.engine.fetch.swarm import Priority
from p2pcloopd.engine.fetch.tuning import TUNING
from p2pcloopd.engine.fetch.view import View
from p2pcloopd.engine.fetch.wants import Want

NOW = 1000.0
PIECE = 1 << 14
PIECES = TUNING.lookahead // PIECE
OTHERS = 15
CALLS = 2000
LIMIT = 0.0002
"""Seconds."""


def _want(piece: int) -> Want:
    """A piece of the stream; every 100th is waited for, and of three others one was asked for."""
    want = Want(piece, NOW - 1.0, ahead=1)
    if piece % 100 == 50:
        want.waiting, want.demand_since = 1, NOW - 0.1
    elif piece % 3 == 1:
        want.asked, want.asked_since = Priority.READAHEAD, NOW - 0.2
    return want


def _alone() -> View:
    """One client, of a seeder that sends."""
    asked = {piece for piece in range(PIECES) if piece % 3 == 1}
    return View(
        now=NOW,
        wants=[_want(piece) for piece in range(PIECES)],
        in_part=set[int]().__contains__,
        requested=asked.__contains__,
        reader_waits=True,
        wanted_since=NOW - 1.0,
        piece_length=PIECE,
        window=1 << 20,
        peers_heard_at=NOW - 0.01,
        bytes_at=NOW - 0.01,
        peers_hopeful=True,
        peers_connected=True,
        exact_ready_at=NOW - 1.0,
        servers_ready_at=NOW - 1.0,
    )


VIEWS = {
    "alone": _alone(),
    "crowd": replace(
        _alone(),
        crowd=OTHERS,
        copies=[piece % 3 for piece in range(PIECES)],
        mine=lambda piece: piece % (OTHERS + 1) == 0,
    ),
}
VIEWS["crowd, dispatcher"] = replace(VIEWS["crowd"], dispatch_ready=True, dispatching=True)
VIEWS["crowd, exclusive"] = replace(VIEWS["crowd, dispatcher"], exclusive=True)


def measure(view: View) -> Values:
    """The median of many decisions, in seconds of this thread."""
    made = plan(view, TUNING)
    if not (made.peers or made.dispatch):
        raise BenchError("nothing is asked for: these facts measure nothing")
    taken = []
    for _ in range(CALLS):
        begun = time.thread_time_ns()
        plan(view, TUNING)
        taken.append(time.thread_time_ns() - begun)
    return {"decision": statistics.median(taken) / 1e9}


@contextmanager
def _contenders(_bench: Bench) -> Iterator[Contenders]:
    yield {name: partial(measure, view) for name, view in VIEWS.items()}


PLAN = Measure(
    "plan",
    "one decision of what to fetch next, with 4 MiB of a stream wanted, alone and in a crowd of 16",
    {"decision": "s"},
    [Row(f"a decision: {name}", (name, "decision"), LIMIT) for name in VIEWS],
    _contenders,
)
