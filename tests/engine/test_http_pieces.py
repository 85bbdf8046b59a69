"""Which pieces are asked of HTTP servers, and which of peers; real peers, and servers that do as
they are told."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import trio
import trio.testing

from p2pcloop.errors import NotHereError, UnreachableError
from p2pcloopd.engine.disk.record import Sources
from p2pcloopd.engine.fetch.backfill import fetch_all
from p2pcloopd.engine.fetch.range_requests import Came, NoServers
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes, flip
from tests.support.waiting import BOUND, until

PIECE = 1 << 14


class FakeServers(NoServers):
    """One server (p2pcloopd.engine.fetch.range_requests.Servers).

    Attributes:
        asked: the ranges that it was asked for.
        refused: how often it was told that it lies.
        down_until: it answers nothing before.
        lacks: pieces that it does not have.
        lies: whether its bytes are wrong.
        whole_only: whether it has no ranges.
        whole: how often all was taken.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.seeds = False
        self.rate: float | None = None
        self.asked: list[range] = []
        self.refused = self.whole = 0
        self.down_until = -math.inf
        self.lacks: set[int] = set()
        self.lies = self.whole_only = False
        self.may_answer = trio.Event()
        self.may_answer.set()

    def ready_at(self) -> float:
        return math.inf if self.whole_only else self.down_until

    def whole_ready_at(self) -> float:
        return self.down_until if self.whole_only else math.inf

    async def get(self, offset: int, length: int, *, spread: bool = False) -> Came:  # noqa: ARG002
        self.asked.append(range(offset, offset + length))
        await self.may_answer.wait()
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self.down_until:
            raise UnreachableError("down")
        if self.lacks.intersection(range(offset // PIECE, -(-(offset + length) // PIECE))):
            raise NotHereError("not there")
        return self._came(self.content[offset : offset + length])

    async def get_whole(self, take: Callable[[Came], Awaitable[None]]) -> None:
        self.whole += 1
        for at in range(0, len(self.content), 10_000):
            await take(self._came(self.content[at : at + 10_000]))

    def asking(self) -> bool:
        return False

    def faults(self) -> list[str]:
        return []

    def _came(self, data: bytes) -> Came:
        return Came(bytes(len(data)) if self.lies else data, "http://fake/", self._refuse)

    def _refuse(self) -> None:
        self.refused += 1
        self.down_until = math.inf

    def pieces(self) -> list[int]:
        return [
            piece
            for each in self.asked
            for piece in range(each.start // PIECE, -(-each.stop // PIECE))
        ]


@asynccontextmanager
async def reading(
    nodes: Nodes, content: bytes, *, peer: bool = False, tuning: Tuning = TUNING
) -> AsyncIterator[tuple[Torrent, FakeServers]]:
    """A node that knows the metadata and a server, and is connected to a seeder or knows none."""
    async with nodes.open("1") as seeder, nodes.open("2", tuning=tuning) as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.metadata()
            if not peer:
                await seeder.close()
                await until(lambda: not torrent.peers.connected)
            servers = FakeServers(content)
            torrent.servers = servers
            yield torrent, servers


async def test_a_lost_piece_that_comes_over_http_is_not_asked_for_without_a_pause(
    nodes: Nodes, content: bytes
) -> None:
    """It is in memory before libtorrent says that it has it."""
    async with reading(nodes, content) as (torrent, servers):
        at = 60 * PIECE
        assert await torrent.read(at, PIECE) == content[at:][:PIECE]
        await fetch_all(torrent)
        await torrent.save()
        flip(nodes.files("2", torrent.info_hash) / "pack", at + 77 - 50_001)
        asked = len(servers.asked)
        torrent.audit.suspect([60])
        await until(lambda: len(servers.asked) > asked)
        await until(lambda: not torrent.audit.lost())
        await torrent.save()
        assert torrent.store.stored.wrong([60]) == []


async def test_what_comes_while_the_swarm_is_left_is_not_kept_in_memory_alone(
    nodes: Nodes, content: bytes
) -> None:
    async with reading(nodes, content) as (torrent, _):
        torrent.store.running = False
        assert torrent.fetcher.give(60, content[60 * PIECE :][:PIECE])
        assert 60 not in torrent.fetcher.wants._recent
        torrent.store.running = True


async def test_pieces_from_memory_let_others_go_on(nodes: Nodes, content: bytes) -> None:
    async with reading(nodes, content) as (torrent, _):
        await torrent.read(60 * PIECE, PIECE)
        with trio.testing.assert_checkpoints():
            await torrent.fetcher.wants.get([60])


async def test_all_comes_from_a_server_where_no_peer_is(nodes: Nodes, content: bytes) -> None:
    async with reading(nodes, content) as (torrent, servers):
        await fetch_all(torrent)
        assert torrent.usable()
        assert sorted(servers.pieces()) == list(range(len(content) // PIECE + 1))  # each once
        assert all(len(each) <= TUNING.max_range for each in servers.asked)
        traffic = torrent.traffic()
        assert traffic.payload_received == len(content)
        assert [(each.base, each.received) for each in traffic.servers] == [
            ("http://fake/", len(content))
        ]
        assert sum(peer.received for peer in traffic.peers) == 0


async def test_what_a_reader_waits_for_comes_first(nodes: Nodes, content: bytes) -> None:
    async with reading(nodes, content) as (torrent, servers):
        servers.down_until = trio.current_time() + 0.2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_all, torrent)
            await until(lambda: torrent.fetcher.wants.table)
            assert await torrent.read(100 * PIECE + 1, 9) == content[100 * PIECE + 1 :][:9]
            assert servers.asked[0].start == 100 * PIECE
            nursery.cancel_scope.cancel()


async def test_a_server_that_fails_is_asked_again_when_it_may_be(
    nodes: Nodes, content: bytes
) -> None:
    async with reading(nodes, content) as (torrent, servers):
        servers.down_until = again = trio.current_time() + 0.3
        assert await torrent.read(5, 9) == content[5:14]
        assert trio.current_time() >= again
        assert len(servers.asked) == 1


async def test_while_peers_send_mirrors_are_left_alone(nodes: Nodes, content: bytes) -> None:
    async with reading(nodes, content, peer=True) as (torrent, servers):
        await fetch_all(torrent)
        assert not servers.asked


async def test_web_seeds_serve_beside_peers(nodes: Nodes, content: bytes) -> None:
    async with reading(nodes, content, peer=True) as (torrent, servers):
        servers.seeds = True
        await fetch_all(torrent)
        traffic = torrent.traffic()
        assert traffic.payload_received == len(content)  # no byte from both
        assert 0 < torrent.peers.by_http.total() < len(content)


async def test_what_a_server_does_not_bring_soon_is_asked_of_peers(
    nodes: Nodes, content: bytes
) -> None:
    tuning = replace(TUNING, server_hedge=0.05)
    async with reading(nodes, content, peer=True, tuning=tuning) as (torrent, servers):
        servers.seeds, servers.may_answer = True, trio.Event()
        await fetch_all(torrent)
        assert servers.asked
        assert torrent.peers.by_http.total() == 0


async def test_pieces_that_no_server_has_keep_no_others_waiting(
    nodes: Nodes, content: bytes
) -> None:
    async with reading(nodes, content) as (torrent, servers):
        servers.lacks = {3, 70}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_all, torrent)
            whole = len(content) // PIECE + 1
            await until(lambda: torrent.store.stored.have.count == whole - 2)
            assert servers.asked.count(range(3 * PIECE, 4 * PIECE)) == 1  # not again and again
            async with nodes.open("3") as other:
                seeded = await other.seed(nodes.source("3", content).staging)
                assert seeded.info_hash == torrent.info_hash
                await torrent.add_sources(Sources(peers=tuple(other.listen_ports)))
                await until(torrent.usable)


async def test_a_server_that_lies_is_told_and_not_asked_again(nodes: Nodes, content: bytes) -> None:
    async with reading(nodes, content) as (torrent, servers):
        servers.lies = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_all, torrent)
            await until(lambda: servers.refused)
            asked = len(servers.asked)
            await trio.sleep(0.05)
            assert len(servers.asked) == asked <= TUNING.server_concurrency
            assert torrent.have_bytes == 0
            nursery.cancel_scope.cancel()


async def test_of_a_server_of_whole_files_all_is_taken_once(nodes: Nodes, content: bytes) -> None:
    tuning = replace(TUNING, whole_unsaved=4 * PIECE)
    async with reading(nodes, content, tuning=tuning) as (torrent, servers):
        servers.whole_only = True
        async with trio.open_nursery() as nursery:
            for at in (0, 50, 99):
                nursery.start_soon(partial(torrent.read, at * PIECE, 5))
        await fetch_all(torrent)
        assert (servers.whole, servers.asked) == (1, [])
        assert torrent.usable()


async def test_whole_files_are_not_taken_while_peers_send(nodes: Nodes, content: bytes) -> None:
    async with reading(nodes, content, peer=True) as (torrent, servers):
        servers.whole_only = True
        await fetch_all(torrent)
        assert servers.whole == 0
