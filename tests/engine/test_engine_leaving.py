"""While the swarm is left and joined again: callers who go away, pieces that still arrive."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from p2pcloop.errors import StorageError
from p2pcloopd.engine import engine
from p2pcloopd.engine.bt.session import open_session
from p2pcloopd.engine.bt.session_swarm import SessionSwarm
from p2pcloopd.engine.bt.settings import EngineSettings
from p2pcloopd.engine.disk.record import Record, Sources
from p2pcloopd.engine.disk.seeding import make_torrent
from p2pcloopd.engine.fetch.demand import Demand
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes, flip
from tests.support.waiting import BOUND

PIECE = 16384


async def _cancel_while_left(torrent: Torrent, work: Callable[[], Awaitable[object]]) -> None:
    """Run `work` until it has left the swarm, and cancel it there."""

    async def run() -> None:
        with scope:
            await work()

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        while torrent.store.running:
            await trio.lowlevel.checkpoint()
        scope.cancel()


@pytest.mark.parametrize("what", ["heal", "verify", "seed"])
async def test_a_caller_that_is_cancelled_leaves_the_torrent_in_its_swarm(
    nodes: Nodes, content: bytes, what: str
) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        work: dict[str, Callable[[], Awaitable[object]]] = {
            "heal": partial(torrent.read, 2 * PIECE, PIECE, heal=True),
            "verify": partial(torrent.verify, range(4)),
            "seed": lambda: reader.seed(nodes.source("2", content).staging),
        }
        with trio.fail_after(BOUND):
            await torrent.read(0, 4 * PIECE)
            await torrent.save()
            flip(nodes.files("2", seeded.info_hash) / "index", 2 * PIECE)
            await _cancel_while_left(torrent, work[what])
            assert torrent.store.running
            assert await torrent.read(70 * PIECE, PIECE) == content[70 * PIECE :][:PIECE]


async def test_seeding_that_the_disk_refuses_leaves_the_torrent_in_its_swarm(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("no", errno=28)

    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.read(0, PIECE)
            monkeypatch.setattr(engine, "move_into_place", refuse)
            with pytest.raises(StorageError, match="no"):
                await reader.seed(nodes.source("2", content).staging)
            assert await torrent.read(70 * PIECE, PIECE) == content[70 * PIECE :][:PIECE]


async def test_a_piece_that_arrives_while_the_swarm_is_left_is_fetched_again(
    nodes: Nodes, content: bytes
) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        got: list[bytes] = []

        async def read() -> None:
            got.append(await torrent.read(70 * PIECE, PIECE))

        with trio.fail_after(BOUND):
            await torrent.read(0, PIECE)
            await torrent.save()
            await torrent.fetcher.leave()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                torrent.fetcher.on_piece_arrived(70)  # the news was on its way
                assert not torrent.store.arrived
                torrent.fetcher.join()
        assert got == [content[70 * PIECE :][:PIECE]]


async def test_metadata_that_comes_while_the_engine_ends_is_let_go(
    nodes: Nodes, content: bytes
) -> None:
    """libtorrent's news come until the last swarm is left: after the torrents' tasks have ended."""
    staging = nodes.source("1", content).staging
    info_hash = make_torrent(staging, lambda _done, _total: None)
    record = Record(staging)
    async with open_session(EngineSettings()) as session:
        swarm = SessionSwarm(session, info_hash, record.data)
        torrent = Torrent(
            info_hash,
            record,
            swarm,
            Demand(),
            decode=session.decode,
            on_stall=lambda _torrent: None,
        )
        async with trio.open_nursery() as nursery:
            swarm.attach(torrent, nursery)
            nursery.cancel_scope.cancel()
        swarm.start(record.load_torrent(info_hash), [False] * 123, Sources(), {})
        swarm.look_again()
        assert torrent.layout is None
        await swarm.stop()
