"""What is fetched before a reader waits for it: read ahead, and filled."""

from __future__ import annotations

import trio

from p2pcloopd.engine.fetch.backfill import fill
from p2pcloopd.engine.fetch.swarm import Priority
from tests.support.engines import Nodes
from tests.support.waiting import BOUND, until

PIECE = 1 << 14


async def test_fill_brings_all_and_makes_it_durable(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await fill(torrent, 0)
        assert torrent.store.stored.have.complete()
        assert torrent.store.stored.read(5, len(content) - 5) == content[5:]


async def test_fill_asks_for_nothing_while_a_reader_waits(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.metadata()
            async with trio.open_nursery() as nursery:
                with reader.demand.waiting():
                    nursery.start_soon(fill, torrent, 0)
                    await trio.sleep(0.8)
                    assert torrent.have_bytes == 0
        assert torrent.store.stored.have.complete()


async def test_a_read_ahead_becomes_urgent_when_a_reader_waits_for_it(
    nodes: Nodes, content: bytes
) -> None:
    async with nodes.open("2") as reader:
        torrent, port = await nodes.known(reader, content)
        pieces, results = torrent.fetcher.wants, []

        def priority() -> Priority:
            return pieces.table[3].priority

        async def read(*, ahead: bool) -> None:
            results.append(await torrent.read(3 * PIECE, 100, ahead=ahead))

        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: read(ahead=True))
                await trio.testing.wait_all_tasks_blocked()
                assert pieces.read == [3]
                assert priority() is Priority.READAHEAD
                assert reader.demand.busy is False
                nursery.start_soon(lambda: read(ahead=False))
                await trio.testing.wait_all_tasks_blocked()
                assert priority() is Priority.DEMAND
                async with nodes.open("1", port) as back:
                    await back.restore()
                    await until(lambda: len(results) == 2)
        assert results == [content[3 * PIECE :][:100]] * 2
