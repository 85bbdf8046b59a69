"""The pieces round parts that were read early: they come when nobody needs the time."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
import trio.testing

from p2pcloop.store.parts import Parts
from p2pcloopd.engine import early
from tests.support.engines import Nodes, until

PIECE = 16384
PATIENCE = 30


@pytest.mark.parametrize("same", [True, False], ids=["of the torrent", "of another"])
async def test_they_come_from_whoever_is_at_hand_and_never_while_a_reader_waits(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    monkeypatch.setattr(early, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(early, "WRITE_SECONDS", 0.1)
    async with nodes.open("2") as partial, nodes.open("3") as reader:
        async with nodes.open("1") as seeder:
            seeded = await seeder.seed(nodes.source("1", content).staging)
            half = await partial.add(seeded.info_hash, peers=seeder.listen_ports)
            with trio.fail_after(PATIENCE):
                await half.read(0, 60 * PIECE)
                await half.save()
        directory = nodes.directory("3", seeded.info_hash)
        torrent = await reader.add(seeded.info_hash, peers=partial.listen_ports)
        with trio.fail_after(PATIENCE):
            await torrent.metadata()
            waited_for = torrent if same else await reader.add(b"t" * 20)
            async with trio.open_nursery() as nursery:
                # Nobody has it: this reader waits.
                nursery.start_soon(waited_for.read, 100 * PIECE, 1)
                await trio.testing.wait_all_tasks_blocked()
                kept = [(0, 100), (20 * PIECE - 1, 2), (110 * PIECE, 10), (30 * PIECE, 3 * PIECE)]
                for offset, length in kept:
                    torrent.early.keep(offset, content[offset : offset + length])
                for piece in range(40, 50):
                    assert await torrent.read(piece * PIECE, 1) == content[piece * PIECE :][:1]
                await torrent.save()
                assert torrent.have_bytes == 10 * PIECE
                await until(lambda: Parts(directory).ranges == sorted(kept))
                nursery.cancel_scope.cancel()
            # What nobody has stays a part, and holds up nothing.
            await until(lambda: Parts(directory).ranges == [(110 * PIECE, 10)])
            assert torrent.have_bytes == (10 + 1 + 2 + 3) * PIECE
            assert not torrent.peers.wanted
            assert await torrent.early.read(110 * PIECE, 10) == content[110 * PIECE :][:10]


async def test_they_are_written_when_no_reader_waits_or_they_are_many_or_the_node_stops(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early, "WRITE_BYTES", 1000)
    async with nodes.open("2") as reader:
        torrent = await reader.add(b"t" * 20)

        def written() -> list[tuple[int, int]]:
            return Parts(nodes.directory("2", torrent.info_hash)).ranges

        with trio.fail_after(PATIENCE):
            with reader.demand.waiting():
                torrent.early.keep(0, content[:600])
                await trio.sleep(2 * early.WRITE_QUIET_SECONDS)
                assert written() == []
                torrent.early.keep(1000, content[1000:1400])
                await until(lambda: written() == [(0, 600), (1000, 400)])
                torrent.early.keep(2000, b"x")
                await trio.sleep(0.1)
                assert len(written()) == 2
            await until(lambda: len(written()) == 3)
            with reader.demand.waiting():
                torrent.early.keep(2500, b"z")
                await torrent.early.flush()
                assert len(written()) == 4
                await torrent.early.flush()
                torrent.early.keep(3000, b"y")
                assert await torrent.early.read(3000, 1) == b"y"
                await trio.sleep(0.1)
    assert written() == [(0, 600), (1000, 400), (2000, 1), (2500, 1), (3000, 1)]


async def test_a_part_that_lies_outside_is_dropped(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was never compared with anything: who gave it may have told anything."""
    monkeypatch.setattr(early, "QUIET_SECONDS", 0)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        directory = nodes.directory("2", seeded.info_hash)
        torrent.early.keep(len(content) - 10, b"eleven byte")
        torrent.early.keep(5, b"x")
        with trio.fail_after(PATIENCE):
            await until((directory / "parts").exists)
            (directory / "parts" / "junk").write_bytes(b"")
            await torrent.metadata()
            await until(lambda: Parts(directory).ranges == [])
        assert torrent.have_bytes == PIECE


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
async def test_what_lies_between_is_asked_of_a_server_and_wrong_parts_of_the_swarm(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    monkeypatch.setattr(early, "QUIET_SECONDS", 0.05)
    asked: list[tuple[int, int]] = []

    async def ask(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        await trio.lowlevel.checkpoint()
        return content[offset : offset + length]

    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        torrent.direct.ask = ask
        directory = nodes.directory("2", seeded.info_hash)
        at = 3 * PIECE + 1000
        part = content[at : at + PIECE]
        torrent.early.keep(at, part[:-1] + b"w" if wrong else part)
        with trio.fail_after(PATIENCE):
            await torrent.metadata()
            await until(lambda: torrent.have_bytes == 2 * PIECE)
            await until(lambda: not Parts(directory).ranges)
            assert await torrent.read(at, PIECE) == part
        assert asked == [(3 * PIECE, 1000), (at + PIECE, PIECE - 1000)]
        received = (await reader.statistics()).torrents[0].traffic.payload_received
        assert bool(received) == wrong
