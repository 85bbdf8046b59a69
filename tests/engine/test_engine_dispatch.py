"""A complete seeder gives each piece to one client of a crowd only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import trio
import trio.lowlevel

from p2pcloop.errors import NotHereError
from p2pcloopd.engine.engine import Engine
from p2pcloopd.engine.fetch.range_requests import Came, Dispatched, NoServers
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes
from tests.support.fake_servers import Dispatcher
from tests.support.waiting import BOUND, until

PIECE = 1 << 14
SEEDER = frozenset({"127.0.0.1"})


@dataclass
class Origin:
    """Gives each piece once, as a complete seeder does.

    Attributes:
        handed: the pieces, in order.
        lost: so many of the first are given to no client.
        seconds: that it takes for each.
    """

    content: bytes
    handed: list[int] = field(default_factory=list)
    lost: int = 0
    wrong: bool = False
    seconds: float = 0.01
    refused: list[int] = field(default_factory=list)

    async def ask(self, pieces: Sequence[int], size: int) -> Dispatched | None:
        await trio.sleep(self.seconds)
        for piece in pieces:
            if piece not in self.handed:
                self.handed.append(piece)
                if len(self.handed) <= self.lost:
                    return None
                data = self.content[piece * PIECE :][:size]
                data = bytes(len(data)) if self.wrong else data
                came = Came(data, "http://fake/", partial(self.refused.append, piece))
                return Dispatched(piece, came, SEEDER)
        return None


@asynccontextmanager
async def crowd(
    nodes: Nodes, content: bytes, tuning: Tuning = TUNING
) -> AsyncIterator[tuple[list[Engine], list[Torrent]]]:
    """A seeder, and three that know it and one another and have the metadata: four engines."""
    async with AsyncExitStack() as stack:
        seeder = await stack.enter_async_context(nodes.open("1"))
        engines = [seeder]
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrents: list[Torrent] = []
        peers = list(seeder.listen_ports)
        for name in "234":
            engine = await stack.enter_async_context(nodes.open(name, tuning=tuning))
            torrents.append(await engine.add(seeded.info_hash, peers=peers))
            engines.append(engine)
            peers += engine.listen_ports
            await torrents[-1].metadata()
        yield engines, torrents


def exclusive(torrent: Torrent) -> bool:
    """Whether the dispatcher's host is no peer."""
    return bool(torrent.fetcher.exclusive_hosts())


def connected(torrent: Torrent) -> set[str]:
    peers = torrent.traffic().peers
    return {peer.address.split(":")[0] for peer in peers if peer.connected}


async def read_all(torrents: list[Torrent], content: bytes) -> None:
    """Expect all of some first bytes, at the same time."""
    async with trio.open_nursery() as nursery:

        async def read(torrent: Torrent) -> None:
            assert await torrent.read(0, len(content), ahead=True) == content

        for torrent in torrents:
            nursery.start_soon(read, torrent)


async def test_each_piece_comes_once_and_the_rest_from_the_others(
    nodes: Nodes, content: bytes
) -> None:
    origin = Origin(content)
    with trio.fail_after(BOUND):
        async with crowd(nodes, content) as (engines, torrents):
            for torrent in torrents:
                torrent.servers = Dispatcher(origin.ask)
            await read_all(torrents, content)
            assert len(set(origin.handed)) == len(origin.handed)
            # A few came by BitTorrent, before those who want the same knew of one another.
            (seeded,) = (await engines[0].statistics()).torrents
            sent = seeded.traffic.payload_sent + len(origin.handed) * PIECE
            assert len(content) <= sent < 2 * len(content)


async def test_who_hands_out_is_no_peer_meanwhile_and_one_again_later(
    nodes: Nodes, content: bytes
) -> None:
    origin = Origin(content)
    with trio.fail_after(BOUND):
        async with crowd(nodes, content, replace(TUNING, crowd_linger=1.5)) as (_, torrents):
            for torrent in torrents:
                torrent.servers = Dispatcher(origin.ask)
            first, *_ = torrents
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_all, torrents, content[:1_000_000])
                await until(lambda: exclusive(first))
                await until(lambda: "127.0.0.1" not in connected(first))
            assert connected(first) >= {"127.0.0.3", "127.0.0.4"}
            await until(lambda: not first.fetcher.crowd)
            assert not exclusive(first)
            first.servers = NoServers()
            await first.read(len(content) - 3, 3)
            assert "127.0.0.1" in connected(first)


async def test_who_hands_out_stays_the_peer_of_other_torrents(nodes: Nodes, content: bytes) -> None:
    origin, more = Origin(content), content[::-1]
    with trio.fail_after(BOUND):
        async with crowd(nodes, content) as (engines, torrents):
            seeded = await engines[0].seed(nodes.source("5", more).staging)
            other = await engines[1].add(seeded.info_hash, peers=engines[0].listen_ports)
            await other.read(0, 1)
            for torrent in torrents:
                torrent.servers = Dispatcher(origin.ask)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_all, torrents, content)
                first = torrents[0]
                await until(lambda: exclusive(first) and "127.0.0.1" not in connected(first))
                assert "127.0.0.1" in connected(other)
                assert await other.read(0, len(more)) == more


async def test_what_is_dispatched_and_does_not_come_is_asked_of_the_swarm(
    nodes: Nodes, content: bytes
) -> None:
    origin = Origin(content, lost=20)
    with trio.fail_after(BOUND):
        async with crowd(nodes, content) as (_, torrents):
            for torrent in torrents:
                torrent.servers = Dispatcher(origin.ask)
            await read_all(torrents, content)


async def test_wrong_pieces_and_a_mirror_that_hands_out_nothing(
    nodes: Nodes, content: bytes
) -> None:
    async def nothing(*_: object) -> Dispatched | None:
        await trio.lowlevel.checkpoint()
        raise NotHereError("it is no node")

    liar = Origin(content, wrong=True)
    with trio.fail_after(BOUND):
        async with crowd(nodes, content) as (_, torrents):
            torrents[0].servers = Dispatcher(liar.ask)
            torrents[1].servers = Dispatcher(nothing)
            await read_all(torrents, content)
            assert liar.refused
            assert len(liar.handed) <= 4
            assert not torrents[0].fetcher.dispatch.ready(trio.current_time())


async def test_a_guest_is_given_what_it_waits_for_first(nodes: Nodes, content: bytes) -> None:
    origin = Origin(content)
    with trio.fail_after(BOUND):
        async with crowd(nodes, content) as (_, torrents):
            first, *_ = torrents
            async with trio.open_nursery() as nursery:
                for torrent in torrents:
                    torrent.servers = Dispatcher(origin.ask)
                nursery.start_soon(read_all, torrents, content)
                await until(lambda: exclusive(first))
                assert await first.read(len(content) - 3, 3) == content[-3:]
