"""What is asked for ahead of readers: alone, and beside others who want the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import pytest
import trio
import trio.testing

from p2pcloopd.engine import ahead as ahead_module
from p2pcloopd.engine.ahead import RARE, Ahead
from p2pcloopd.engine.demand import Demand
from p2pcloopd.engine.handout import Handouts
from p2pcloopd.engine.peers import Peers
from p2pcloopd.engine.pieces import Pieces
from p2pcloopd.engine.swarm import Others, Swarm
from p2pcloopd.engine.transfer import Transfer

PIECE = 1 << 14
PIECES = 64


@dataclass
class FakeSwarm:
    """Knows who else is there, and what they have."""

    where: Others = field(default_factory=Others)
    have: list[int] = field(default_factory=lambda: [0] * PIECES)
    crowded: bool = False
    without: frozenset[str] = frozenset()

    def others(self) -> Others:
        return self.where

    def copies(self) -> list[int]:
        return self.have

    def crowd(self, *, on: bool, without: frozenset[str]) -> None:
        self.crowded, self.without = on, without


class FakeTransfer:
    """As much of a `Transfer` as is looked at; notes what is asked for, in order."""

    def __init__(self) -> None:
        self.in_parts: set[int] = set()
        self.in_part = self.in_parts.__contains__
        self.raised: list[int] = []
        self.pieces = Pieces(self._raise, self._ignore, self._ignore, self._ignore, lambda: None)
        self.demand = Demand()
        self.running = True
        self.crowd, self.apart = 0, False
        self.disk = self.stored = self
        self.layout = self
        self.piece_length = PIECE

    def _raise(self, pieces: Iterable[int]) -> None:
        self.raised += pieces

    def _ignore(self, pieces: Iterable[int]) -> None:
        pass


class FakePeers:
    """A link whose window holds so many pieces."""

    def __init__(self, pieces: int) -> None:
        self.bytes = pieces * PIECE

    def window(self) -> int:
        return self.bytes


@asynccontextmanager
async def expecting(
    swarm: FakeSwarm,
    pieces: Iterable[int] = range(PIECES),
    *,
    window: int = 8,
    handout: Handouts | None = None,
) -> AsyncIterator[tuple[Ahead, FakeTransfer]]:
    """One torrent, of which some pieces are expected."""
    transfer = FakeTransfer()
    parts = (cast(Transfer, transfer), cast(Peers, FakePeers(window)), cast(Swarm, swarm))
    ahead = Ahead(*parts, handout or Handouts(*parts[:2]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(transfer.pieces.get, pieces, ahead=True))
        await trio.testing.wait_all_tasks_blocked()
        yield ahead, transfer
        nursery.cancel_scope.cancel()


async def test_alone_a_window_is_asked_for_in_order() -> None:
    swarm = FakeSwarm()
    async with expecting(swarm) as (ahead, transfer):
        ahead.top_up()
        assert transfer.raised == list(range(8))
        ahead.top_up()
        assert transfer.raised == list(range(8))
        transfer.pieces.deliver(3, b"")
        ahead.top_up()
        assert transfer.raised == list(range(9))
        assert not swarm.crowded


async def test_the_window_is_half_as_wide_while_a_reader_waits() -> None:
    async with expecting(FakeSwarm()) as (ahead, transfer):
        with transfer.demand.waiting():
            ahead.top_up()
        assert transfer.raised == list(range(4))


async def test_what_a_reader_waits_for_is_asked_for_at_once_and_is_not_in_the_window() -> None:
    async with expecting(FakeSwarm()) as (ahead, transfer), trio.open_nursery() as nursery:
        nursery.start_soon(transfer.pieces.get, [60])
        await trio.testing.wait_all_tasks_blocked()
        assert transfer.raised == [60]
        ahead.top_up()
        assert transfer.raised == [60, *range(8)]
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("LOOK_SECONDS", "OTHERS_SECONDS"):
        monkeypatch.setattr(ahead_module, pause, 0)


async def test_beside_others_what_they_have_comes_in_order_and_few_of_the_rest() -> None:
    swarm = FakeSwarm(Others("10.0.0.1", ("10.0.0.2", "10.0.0.3")))
    swarm.have = [int(piece % 2 == 0) for piece in range(PIECES)]
    async with expecting(swarm) as (ahead, transfer):
        ahead.top_up()
        assert swarm.crowded
        assert [p for p in transfer.raised if swarm.have[p]] == list(range(0, PIECES, 2))
        assert len([p for p in transfer.raised if not swarm.have[p]]) == RARE
        before = list(transfer.raised)
        ahead.top_up()
        assert transfer.raised == before
        swarm.where = Others()
        ahead.top_up()
        assert not swarm.crowded


async def test_those_who_boot_together_begin_with_different_pieces() -> None:
    hosts = [f"10.0.0.{number}" for number in range(1, 9)]
    first: list[int] = []
    for here in hosts:
        swarm = FakeSwarm(Others(here, tuple(host for host in hosts if host != here)))
        async with expecting(swarm) as (ahead, transfer):
            ahead.top_up()
            shares = [piece for piece in transfer.raised if not ahead.is_share_of_others(piece)]
            assert shares
            first += shares
    assert len(set(first)) == len(first)


class FakeHandouts:
    """Somebody who hands out; notes what is asked for."""

    hosts = frozenset({"10.0.0.9"})
    wanted: Sequence[int] = ()

    def ready(self) -> bool:
        return True

    def want(self, pieces: Sequence[int], crowd: int) -> None:
        self.wanted, self.crowd = pieces, crowd


async def test_where_somebody_hands_out_the_rest_is_asked_of_him_alone() -> None:
    swarm = FakeSwarm(Others("10.0.0.1", ("10.0.0.2",)))
    swarm.have = [int(piece % 2 == 0) for piece in range(PIECES)]
    handout = FakeHandouts()
    async with expecting(swarm, handout=cast(Handouts, handout)) as (ahead, transfer):
        ahead.top_up()
        alone = list(range(1, PIECES, 2))
        assert transfer.raised == [*range(0, 16, 2), *alone]  # what others have: a window of 8
        assert handout.wanted == alone
        assert handout.crowd == 2
        assert swarm.without == {"10.0.0.9"}
        assert transfer.apart
        transfer.pieces.deliver(3, b"")
        swarm.have[5] = 1
        transfer.in_parts.add(9)  # the rest of it is asked for by its exact bytes
        ahead.top_up()
        assert handout.wanted == [1, 7, *range(11, PIECES, 2)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer.pieces.get, [31, 32])
            await trio.testing.wait_all_tasks_blocked()
            ahead.top_up()
            assert handout.wanted[:3] == [31, 1, 7]
            nursery.cancel_scope.cancel()


async def test_whose_address_others_share_stays_a_peer() -> None:
    swarm = FakeSwarm(Others("10.0.0.1", ("10.0.0.2", "10.0.0.9")))
    async with expecting(swarm, handout=cast(Handouts, FakeHandouts())) as (ahead, transfer):
        ahead.top_up()
        assert not swarm.without
        assert not transfer.apart


async def test_a_crowd_is_one_for_a_while_after_nothing_is_expected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swarm = FakeSwarm(Others("10.0.0.1", ("10.0.0.2",)))
    handout = FakeHandouts()
    async with expecting(swarm, [1], handout=cast(Handouts, handout)) as (ahead, transfer):
        ahead.top_up()
        transfer.pieces.deliver(1, b"")
        ahead.top_up()
        assert transfer.crowd
        assert swarm.crowded
        assert not handout.wanted
        monkeypatch.setattr(ahead_module, "LINGER_SECONDS", 0)
        ahead.top_up()
        left = [bool(transfer.crowd), transfer.apart, swarm.crowded, bool(swarm.without)]
        assert left == [False] * 4


async def test_what_nobody_chose_is_asked_for_in_the_end() -> None:
    swarm = FakeSwarm(Others("10.0.0.1", ("10.0.0.2",)))
    async with expecting(swarm, range(6)) as (ahead, transfer):
        for _ in range(6):
            ahead.top_up()
            for piece in transfer.pieces.asked:
                transfer.pieces.deliver(piece, b"")
        assert sorted(transfer.raised) == list(range(6))
