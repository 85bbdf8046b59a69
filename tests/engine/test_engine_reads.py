"""Reads of what is here, of what is not, of what no peer has yet."""

from __future__ import annotations

import random
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pcloop.errors import BusyError, FormatError, UsageError
from p2pcloop.formats.link import format_peer
from p2pcloop.store.have import HaveView
from p2pcloopd.engine.bt import settings
from p2pcloopd.engine.bt.session_swarm import SessionSwarm
from p2pcloopd.engine.disk.record import Sources
from p2pcloopd.engine.fetch.backfill import fetch_all
from p2pcloopd.engine.fetch.tuning import TUNING
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes
from tests.support.waiting import BOUND, until

PIECE = 16384


async def test_ranges_from_a_peer(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            layout = await torrent.metadata()
            assert layout == await seeded.metadata()
            assert [str(path) for path, _ in layout.files] == ["image/index", "image/pack"]
            assert layout.total_size == len(content)
            ranges = [(0, 1), (len(content) - 1, 1), (PIECE - 1, 2), (50_000, 70_000)]
            chooser = random.Random(3)
            ranges += [
                (start, chooser.randrange(1, len(content) - start + 1))
                for start in (chooser.randrange(len(content)) for _ in range(20))
            ]
            for offset, length in ranges:
                assert await torrent.read(offset, length) == content[offset : offset + length]
                assert await seeded.read(offset, length) == content[offset : offset + length]
        for offset, length in ((-1, 2), (0, 0), (len(content), 1), (0, (16 << 20) + 1)):
            with pytest.raises(UsageError):
                await torrent.read(offset, length)


async def test_what_was_just_brought_is_read_from_memory(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the operation `read` does: it waits first, and takes the bytes once there is room."""
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.fetch(PIECE + 5, 2 * PIECE)
            await torrent.save()

            def refuse(_offset: int, _length: int) -> bytes:
                raise AssertionError("read from the files")

            monkeypatch.setattr(torrent.store.stored.content, "read", refuse)
            assert await torrent.read(PIECE + 5, 2 * PIECE) == content[PIECE + 5 :][: 2 * PIECE]


async def test_who_asks_what_peers_were_asked_for_hears_what_they_sent(
    nodes: Nodes, content: bytes
) -> None:
    """libtorrent has a thread of its own; this one has no time for its news meanwhile."""
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.read(0, 1)
        wanted, deadline = range(5, 10), time.monotonic() + BOUND
        torrent.fetcher.wants.fill(wanted, dial=True)
        torrent.fetcher.step()
        seen: set[int] = set()
        while not all(map(torrent.store.has, wanted)):  # nothing is awaited here
            requested = torrent._swarm.requested()
            # One may be in both: it became whole between libtorrent's answer and its news.
            gone = [piece for piece in seen - requested if not torrent.store.has(piece)]
            assert not gone, "what was on its way is here, or still on its way"
            seen |= requested
            assert time.monotonic() < deadline


async def test_only_what_is_asked_for_crosses(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        results: list[bytes] = []
        with trio.fail_after(BOUND):
            await torrent.metadata()

            async def read() -> None:
                results.append(await torrent.read(5 * PIECE + 1, 3 * PIECE))

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(read)
            assert await torrent.read(6 * PIECE, 10) == content[6 * PIECE :][:10]
            await torrent.save()
            statistics = await reader.statistics()
        assert results == [content[5 * PIECE + 1 :][: 3 * PIECE]] * 5
        assert torrent.have_bytes == 4 * PIECE
        (only,) = statistics.torrents
        assert only.traffic.payload_received == 4 * PIECE
        (peer,) = only.traffic.peers
        assert (peer.address, peer.received) == (
            format_peer(seeder.listen_ports[0]),
            4 * PIECE,
        )
        assert 4 * PIECE < statistics.received < 6 * PIECE


async def test_cancelled_read_is_not_fetched_and_others_are(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("2") as reader:
        torrent, port = await nodes.known(reader, content)
        results: list[bytes] = []

        async def read() -> None:
            results.append(await torrent.read(0, 3 * PIECE))

        async def read_in_vain(scope: trio.CancelScope) -> None:
            with scope:
                await torrent.read(2 * PIECE, 3 * PIECE)
                raise AssertionError("no peer can have answered")

        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                scope = trio.CancelScope()
                nursery.start_soon(read_in_vain, scope)
                await trio.testing.wait_all_tasks_blocked()
                assert sorted(torrent.fetcher.wants.read) == [0, 1, 2, 3, 4]
                scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                assert sorted(torrent.fetcher.wants.read) == [0, 1, 2]
                async with nodes.open("1", port) as back:
                    await back.restore()
                    await until(lambda: results)
                    await torrent.save()
        assert results == [content[: 3 * PIECE]]
        assert torrent.have_bytes == 3 * PIECE


async def test_peer_that_comes_late(nodes: Nodes, content: bytes) -> None:
    source = nodes.source("1", content)
    async with nodes.open("1") as seeder:
        info_hash = (await seeder.seed(source.staging)).info_hash
        address = seeder.listen_ports[0]
    stalls: list[tuple[str, ...]] = []

    def on_stall(torrent: Torrent) -> None:
        stalls.append(tuple(str(peer) for peer in torrent.peers.tried()))

    soon = replace(TUNING, peers_stall=1)
    async with nodes.open("2", on_stall=on_stall, tuning=soon) as reader:
        torrent = await reader.add(info_hash, peers=[address])
        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(torrent.metadata)
                await until(lambda: (f"127.0.0.1:{address[1]} (Connection refused)",) in stalls)
                async with nodes.open("1", address[1]) as seeder:
                    await seeder.restore()
                    assert await torrent.read(100, 100_000) == content[100:100_100]


async def test_peer_whose_name_cannot_be_one(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        peers = [("a..b", 1), ("a" * 64, 1), *seeder.listen_ports]
        torrent = await reader.add(seeded.info_hash, peers=peers)
        with trio.fail_after(BOUND):
            assert await torrent.read(0, PIECE) == content[:PIECE]
        assert [peer.error is None for peer in torrent.peers.tried()] == [False, False, True]
        assert "the name is not known" in str(torrent.peers.tried()[0])


async def test_a_peer_whose_name_is_never_answered_delays_no_other(
    nodes: Nodes, content: bytes
) -> None:
    class DeadNameServer(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: object) -> list[Any]:
            return await trio.sleep_forever()

        async def getnameinfo(self, *_: object) -> tuple[str, str]:
            return await trio.sleep_forever()

    trio.socket.set_custom_hostname_resolver(DeadNameServer())
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        peers = [("dead.example", 1), ("dead2.example", 1), *seeder.listen_ports]
        torrent = await reader.add(seeded.info_hash, peers=peers)
        with trio.fail_after(BOUND):
            assert await torrent.read(0, PIECE) == content[:PIECE]
        # Found later, by a source that names it alone.
        await torrent.add_sources(Sources(peers=(("dead3.example", 1),)))
        with trio.fail_after(BOUND):
            assert await torrent.read(40 * PIECE, PIECE) == content[40 * PIECE : 41 * PIECE]


async def test_fetch_all_then_start_again(nodes: Nodes, content: bytes, tmp_path: Path) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        reports: list[tuple[int, int]] = []
        with trio.fail_after(BOUND):
            await fetch_all(torrent, lambda done, total: reports.append((done, total)))
        assert reports[-1] == (len(content), len(content))
        assert reports == sorted(reports)
        with HaveView(tmp_path / "2/torrents" / seeded.info_hash.hex() / "have") as view:
            assert view.has(0, view.pieces - 1)
    async with nodes.open("2") as reader, nodes.open("3") as third:
        await reader.restore()
        (torrent,) = reader.torrents
        assert torrent.usable()
        assert [str(peer).split()[0] for peer in torrent.peers.tried()] == [
            format_peer(seeder.listen_ports[0])
        ]
        assert await torrent.read(0, len(content)) == content
        other = await third.add(torrent.info_hash, peers=reader.listen_ports)
        with trio.fail_after(BOUND):
            assert await other.read(0, len(content)) == content


async def test_demand_overtakes_background(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch_all, torrent)
                assert await torrent.read(100 * PIECE, PIECE) == content[100 * PIECE : 101 * PIECE]
        assert torrent.usable()


async def test_same_content_same_torrent(nodes: Nodes, content: bytes) -> None:
    hashed: list[tuple[int, int]] = []
    async with nodes.open("1") as one, nodes.open("2") as two:
        first = await one.seed(
            nodes.source("1", content).staging, lambda done, total: hashed.append((done, total))
        )
        second = await two.seed(nodes.source("2", content).staging)
        assert first.info_hash == second.info_hash
        assert hashed[-1] == (len(content), len(content))
        again = nodes.source("1", content)
        assert await one.seed(again.staging) is first
        assert not again.staging.exists()
        assert again.pack.read_bytes() == content[50_001:]


async def test_nothing_to_seed(nodes: Nodes, tmp_path: Path) -> None:
    async with nodes.open("1") as engine:
        for name, fill in (("empty", False), ("zero", True)):
            data = tmp_path / name / "data"
            data.mkdir(parents=True)
            if fill:
                (data / "x").touch()
            with pytest.raises(FormatError):
                await engine.seed(tmp_path / name)


async def test_port_is_taken(nodes: Nodes) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BusyError, match="in use"):
            async with nodes.open("1", taken.getsockname()[1]):
                raise AssertionError("the port is taken")


async def test_error_of_the_body_comes_out_bare(nodes: Nodes) -> None:
    with pytest.raises(KeyError):
        async with nodes.open("1"):
            raise KeyError("mine")


async def test_idle_node_sleeps(nodes: Nodes, content: bytes, mock_clock: MockClock) -> None:
    """A minute of it wakes a few tasks. What libtorrent's own threads tell has no time."""
    mock_clock.rate = 1
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.read(0, PIECE)
            await torrent.save()
        mock_clock.rate = 0
        await wait_all_tasks_blocked()  # of deadlines that have passed
        deadlines, end = 0, trio.current_time() + 60
        while trio.current_time() < end:
            deadlines += 1
            mock_clock.jump(max(0, trio.lowlevel.current_statistics().seconds_to_next_deadline))
            await wait_all_tasks_blocked()
        mock_clock.rate = 1
        assert deadlines <= 45


async def test_lost_news_are_made_up_for(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(settings._RESOURCES, "alert_queue_size", 8)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.metadata()
            assert await torrent.read(0, len(content)) == content
            await fetch_all(torrent)
        assert torrent.usable()
    assert "news were lost" in caplog.text


async def test_a_torrent_at_rest_is_told_of_without_asking_libtorrent(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question waits for libtorrent's thread, and a node has a thousand torrents."""
    async with nodes.open("1") as seeder:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        async with nodes.open("2") as reader:
            torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
            with trio.fail_after(BOUND):
                await fetch_all(torrent)
            [told] = (await reader.statistics()).torrents
            assert [peer.connected for peer in told.traffic.peers] == [True]
        with trio.fail_after(BOUND):
            await until(lambda: not seeded.peers.connected)
        sent = seeded.traffic()
        assert sent.payload_sent >= len(content)
        with monkeypatch.context() as at_rest:
            at_rest.setattr(SessionSwarm, "_count", None)
            assert seeded.traffic() == replace(sent, up_rate=0, peers=())
