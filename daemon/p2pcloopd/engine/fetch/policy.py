"""Decides which pieces are asked for next, and of which source. Nothing else in the engine does.

`plan` is a function of facts, which changes nothing: fetcher.py looks, plans, applies the
difference, and does it again when something happens or `Plan.wake_at` has come.

A piece that is wanted, and not here, goes this way; the first line that fits decides:

    wanted as     where                                          asked of
    ------------  ---------------------------------------------  --------------------------------
    any           a range request is under way for it            that; peers, too, once it is late
    any           bytes of it are here, no peer was asked,       a server, for the missing bytes
                  a server has ranges
    DEMAND        alone, no peer was asked, a server has ranges  a server, for this piece
    DEMAND        exclusive mode, not late                       the dispatcher, and all clients
    DEMAND        exclusive mode, late                           a server, and all clients
    DEMAND        in a crowd, for its first quarter second       as the first of READAHEAD
    DEMAND        else                                           peers
    READAHEAD     alone                                          peers, in order, a window at once;
                                                                 half of it while a reader waits
    READAHEAD     in a crowd, another client has it              peers, in order, 2 MiB at once; in
                                                                 exclusive mode a window at once
    READAHEAD     in a crowd, only complete seeders have it,     the dispatcher, in order; in
                  a dispatcher is there                          exclusive mode all clients, too
    READAHEAD     in a crowd, only complete seeders have it      peers, 4 at once, own shares first
    FILL          for the rest of a piece                        nothing else
    FILL          else                                           peers: backfill.py bounds it

Some of what is planned for peers is asked of servers instead:

    peers                                        HTTP servers are asked for
    -------------------------------------------  ------------------------------------------------
    none is connected, or all are silent         all of it, most urgent first, 4 ranges at once
    the only one known is being connected to     what is read ahead next, one window at a time
    send, and a server is a web seed             half of what is wanted next, and what is late
    send, in a crowd or from mirrors alone       nothing

"In a crowd": clients are connected that have not all of the torrent. "Exclusive mode": a
dispatcher gives each piece to one client at a time, and its host is no peer meanwhile. "Silent":
nothing came for a second, and a quarter of a second more for each other client of a crowd. "Late":
a guest has waited as long; twice that where a client was asked, or it is the share of another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from p2pcloopd.engine.fetch.swarm import Priority
from p2pcloopd.engine.fetch.tuning import Tuning
from p2pcloopd.engine.fetch.view import Plan, RangeView, View
from p2pcloopd.engine.fetch.wants import Flight, Want, runs_of


def takes_exact_range(view: RangeView, tuning: Tuning) -> bool:
    """Whether a read asks a server for exactly its bytes, and not for the pieces round them.

    Not where one of its pieces is here or on its way: the read waits for these. In a crowd one
    piece for all clients crosses a line once; a large one costs more than the bytes for each.
    """
    large = view.piece_length > tuning.crowd_piece * (view.crowd + 1)
    able = view.known and view.room and view.exact_ready and not view.coming
    return able and (large or not view.crowd)


def plan(view: View, tuning: Tuning) -> Plan:
    """Decide what is asked for now."""
    made = Plan(clients=view.crowd + 1, wake_at=view.exact_cools_until)
    demand = sorted((w for w in view.wants if w.waiting), key=lambda want: want.demand_since)
    ahead = [want for want in view.wants if want.ahead and not want.waiting]
    fills = [want for want in view.wants if not (want.ahead or want.waiting)]
    left = _unsettled(view, tuning, made, demand)
    expected = [want for want in left if not _by_demand(view, tuning, made, want)]
    expected += _unsettled(view, tuning, made, ahead)
    if expected or view.exclusive:
        _read_ahead(view, tuning, made, expected, left)
    for want in _unsettled(view, tuning, made, fills):
        if not want.servers_only:
            made.peers[want.piece] = Priority.FILL
    made.exact = _in_window(view, made.exact, {want.piece for want in demand})
    _nudge(view, tuning, made)
    _share_with_servers(view, tuning, made)
    made.nudge = [piece for piece in made.nudge if piece in made.peers]
    # Peers are tried for what they are asked for, now or if another source fails.
    asked = made.peers.keys() | set(made.dispatch).union(*made.ranges)
    tried = (w for w in view.wants if w.piece in asked or (w.flight and not w.flight.exact))
    made.dial = any(w.waiting or w.ahead or w.dials for w in tried)
    return made


def _unsettled(view: View, tuning: Tuning, made: Plan, wants: Iterable[Want]) -> list[Want]:
    """Those for which no range request is under way or planned."""
    left, exact_ready, in_part = [], view.exact_ready, view.in_part
    for want in wants:
        flight = want.flight
        if flight is not None and not (want.waiting and flight.exact and flight.queued):
            _await(view, tuning, made, want, flight)
        elif exact_ready and not view.requested(want.piece) and in_part(want.piece):
            made.exact.append(want.piece)
        else:
            left.append(want)
    return left


def _await(view: View, tuning: Tuning, made: Plan, want: Want, flight: Flight) -> None:
    """Wait for the range request for a piece, and ask peers as well once it is late."""
    if want.servers_only:
        return
    if not flight.hedged:
        if flight.exact:
            silent_at = max(flight.since, view.servers_heard_at) + tuning.exact_hedge
            at = min(silent_at, flight.since + tuning.exact_limit)
        else:
            late_at = flight.since + tuning.server_hedge
            at = late_at if view.peers_connected or late_at > view.now else math.inf
        if at > view.now:
            made.wake(at)
            return
        if flight not in made.hedge:
            made.hedge.append(flight)
    made.peers[want.piece] = want.priority


def _in_window(view: View, pieces: Sequence[int], urgent: set[int]) -> list[int]:
    """Those that a guest waits for, and no more of the others at once than a window."""
    flying = sum(len(f.run) for f in view.flights if f.exact and not f.hurried)
    room = max(0, max(1, view.window // view.piece_length) - flying)
    return [p for p in pieces if p in urgent] + [p for p in pieces if p not in urgent][:room]


def _by_demand(view: View, tuning: Tuning, made: Plan, want: Want) -> bool:
    """Whether what a guest waits for is asked for at once; else it comes first of readahead."""
    if view.exclusive:
        patience = tuning.dispatch_patience + view.crowd * tuning.crowd_gap
        first = view.mine(want.piece) and not view.requested(want.piece)
        late_at = want.demand_since + patience * (1 if first else 2)
        if view.exact_ready and view.now >= late_at:
            made.exact.append(want.piece)
        made.wake(late_at if view.now < late_at else math.inf)
    elif view.crowd:
        patient_until = want.demand_since + tuning.crowd_patience
        if view.now < patient_until:
            made.wake(patient_until)
            return False
    elif view.exact_ready and (want.stalled or not view.requested(want.piece)):
        made.exact.append(want.piece)
        if not want.stalled:
            return True
    made.peers[want.piece] = Priority.DEMAND
    return True


def _read_ahead(
    view: View, tuning: Tuning, made: Plan, expected: Sequence[Want], demand: Sequence[Want]
) -> None:
    """Choose what is asked for ahead: `expected` in this order, and `demand` of a dispatcher."""
    if not view.crowd:
        made.read_ahead(_up_to(view, expected, view.window // (2 if view.reader_waits else 1)))
        return
    made.wake(view.now + tuning.look)
    if not view.copies:
        made.read_ahead(_asked(expected))
        return
    shared = [want for want in expected if view.copies[want.piece]]
    alone = [want for want in expected if not view.copies[want.piece]]
    if view.exclusive:
        # What no other client has is asked of them, too: they send it as soon as they have it.
        made.read_ahead([*_up_to(view, shared, view.window), *alone])
    else:
        made.read_ahead(_up_to(view, shared, tuning.shared))
        own = _asked(alone) if view.dispatch_ready else _own(view, tuning, alone)
        others = not (own or view.dispatch_ready or _asked(expected))
        made.read_ahead(alone[: tuning.rare] if others else own)
    if view.dispatch_ready:
        first = [w for w in demand if view.exclusive and not view.copies[w.piece]]
        rest = [w for w in alone if view.exclusive or w.asked is Priority.IDLE]
        made.dispatch = [want.piece for want in (*first, *rest)]


def _asked(wants: Iterable[Want]) -> list[Want]:
    return [want for want in wants if want.asked is not Priority.IDLE]


def _up_to(view: View, wants: Sequence[Want], size: int) -> list[Want]:
    """What was asked for already, and as much more as makes so many bytes, one piece at least."""
    asked = _asked(wants)
    room = max(1, size // view.piece_length) - len(asked)
    return [*asked, *(w for w in wants if w.asked is Priority.IDLE)][: len(asked) + max(0, room)]


def _own(view: View, tuning: Tuning, alone: Sequence[Want]) -> list[Want]:
    """Few pieces of those that only complete seeders have: what was asked for, then own shares.
    The rest is the share of others, and asked for where nothing else is: they may not get it."""
    asked = _asked(alone)
    fresh = (want for want in alone if want.asked is Priority.IDLE and view.mine(want.piece))
    return [*asked, *islice(fresh, max(0, tuning.rare - len(asked)))]


def _nudge(view: View, tuning: Tuning, made: Plan) -> None:
    """Ask anew for what does not come: a stalled read once, readahead each second."""
    made.nudge = [want.piece for want in view.wants if want.stalled and want.piece in made.peers]
    ahead = [want for want in view.wants if made.peers.get(want.piece) is Priority.READAHEAD]
    if not ahead and not view.dispatching:
        return
    since = min((want.asked_since for want in ahead), default=view.wanted_since)
    patience = tuning.stall + view.crowd * tuning.crowd_gap
    stalls_at = max(view.bytes_at, min(since, view.now), view.nudged_at) + patience
    if view.now < stalls_at:
        made.wake(stalls_at)
        return
    made.nudge += [want.piece for want in ahead if not want.stalled]
    made.dispatch_stalls = view.dispatching
    made.wake(view.now + patience)


def _share_with_servers(view: View, tuning: Tuning, made: Plan) -> None:
    """Move some of what peers are to be told of to HTTP servers."""
    made.silent = view.peers_silent
    if min(view.servers_ready_at, view.whole_ready_at) == math.inf or not made.peers:
        return
    send, ready = _peers_send(view, tuning, made), view.servers_ready_at
    made.wake(ready if ready > view.now else math.inf)
    beside = send and view.seeds and not view.crowd
    told = made.peers.keys() - made.exact
    free = [want for want in view.wants if want.piece in told and want.flight is None]
    if send and not beside:
        if ready <= view.now:
            _begin_with_server(view, tuning, made, free)
        return
    if beside:
        _keep_for_seed(view, tuning, made, free)
    if ready > view.now:
        if ready == math.inf and not send and free:
            made.whole = view.whole_ready_at <= view.now
            made.wake(math.inf if made.whole else view.whole_ready_at)
        return
    candidates = list(_candidates(view, tuning, made, free, beside=beside))
    room = tuning.server_concurrency - view.ranges_flying
    _ask_servers(made, runs_of(candidates, room, view.range_pieces))


def _begin_with_server(view: View, tuning: Tuning, made: Plan, free: Sequence[Want]) -> None:
    """Ask a server for what a guest wants next while the one known peer is being connected to: that
    takes some tenths of a second. Where others may come, this would be sent to each of them."""
    heard = view.now - view.peers_heard_at < tuning.silent
    if heard or view.ranges_flying or view.crowd or view.peers_connected or not view.sole_peer:
        return
    next_ones = (want for want in free if want.ahead and not view.requested(want.piece))
    there = [want for want in next_ones if want.absent_until <= view.now]
    _ask_servers(made, runs_of(there, 1, max(1, view.window // view.piece_length)))


def _ask_servers(made: Plan, runs: Iterable[range]) -> None:
    """Have servers asked for these ranges, and peers for nothing of them."""
    made.ranges = list(runs)
    for piece in chain.from_iterable(made.ranges):
        made.peers.pop(piece, None)


def _candidates(
    view: View, tuning: Tuning, made: Plan, free: Sequence[Want], *, beside: bool
) -> Iterator[Want]:
    """What servers are asked for: all, or beside peers what is kept for them and what is late."""
    for want in free:
        due = want.absent_until
        if beside and want.piece not in made.for_server:
            due = max(due, want.asked_since + tuning.late)
        if due <= view.now:
            yield want
        else:
            made.wake(due)


def _peers_send(view: View, tuning: Tuning, made: Plan) -> bool:
    """Whether peers send, or may be about to: they are given a second, once, until they have sent
    something. Where BitTorrent is blocked connections come up, and break, for ever."""
    silent = tuning.silent + view.crowd * tuning.crowd_gap
    # What a dispatcher gives to one client, the others have from that client.
    heard_at = view.bytes_at if view.exclusive else view.peers_heard_at
    heard = view.now - heard_at < silent
    waits = view.now - view.wanted_since < silent and view.peers_hopeful
    made.silent = not heard and (view.peers_silent or not waits)
    if not made.silent:
        made.wake((heard_at if heard else view.wanted_since) + silent)
    return not made.silent


def _keep_for_seed(view: View, tuning: Tuning, made: Plan, free: Sequence[Want]) -> None:
    """Keep half of what is wanted next for a web seed, and tell peers of the rest."""
    there = [want for want in free if want.absent_until <= view.now]
    kept = {want.piece for want in there if want.for_server}
    fresh = [w.piece for w in there if w.asked is Priority.IDLE and not w.for_server]
    room = tuning.server_concurrency * view.range_pieces - len(kept)
    kept.update(fresh[len(fresh) - max(0, min(room, len(fresh) // 2)) :])
    if len(kept) == len(free):
        return  # peers have nothing else to do
    made.for_server = kept
    for piece in kept:
        del made.peers[piece]
