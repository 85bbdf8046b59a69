"""Room is given back by piece: bits first, readers go on, and a crash leaves no bit that lies."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import trio

from p2pcloop.errors import NotHereError, StorageError
from p2pcloop.store.have import HaveView
from p2pcloopd.engine.disk import holes
from p2pcloopd.engine.disk.content import Content
from p2pcloopd.engine.disk.holes import allocated, needed
from p2pcloopd.engine.disk.record import Sources
from p2pcloopd.engine.engine import Engine
from p2pcloopd.engine.fetch.backfill import fetch_all
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import INDEX_SIZE, Nodes
from tests.support.waiting import BOUND, until

PIECE = 16384
NOBODYS = b"t" * 20

_CHILD = """
import os
import signal
import sys
from pathlib import Path

import trio
from p2pcloopd.engine.disk import holes
from p2pcloopd.engine.engine import open_engine
from p2pcloopd.engine.disk.record import Sources
from p2pcloopd.engine.bt.settings import EngineSettings

left = int(sys.argv[2])


def killed_before(call):
    def step(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)

    return step


async def main():
    settings = EngineSettings((("127.0.0.2", 0),), ("127.0.0.2",))
    async with open_engine(settings, Path(sys.argv[1])) as engine:
        await engine.restore()
        (torrent,) = engine.torrents
        os.pwrite, os.fdatasync = killed_before(os.pwrite), killed_before(os.fdatasync)
        holes.punch_hole = killed_before(holes.punch_hole)
        assert await torrent.evict([*range(2, 9), 20, 21])
        print("evicted", flush=True)


trio.run(main)
"""


async def fetched(nodes: Nodes, seeder: Engine, reader: Engine, content: bytes) -> Torrent:
    seeded = await seeder.seed(nodes.source("1", content).staging)
    torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
    with trio.fail_after(BOUND):
        await fetch_all(torrent)
    return torrent


def room(torrent: Torrent) -> int:
    disk = torrent.store.stored
    return allocated(disk.content)


def is_tight(torrent: Torrent) -> bool:
    """Whether no more room is taken than the pieces need that are here."""
    disk = torrent.store.stored
    return allocated(disk.content) <= needed(disk.content, disk.layout, disk.have.to_list())


async def test_what_is_evicted_is_fetched_again_and_nothing_else(
    nodes: Nodes, content: bytes
) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        torrent = await fetched(nodes, seeder, reader, content)
        before, received = room(torrent), torrent.traffic().payload_received
        assert received == len(content)
        gone = [*range(10), *range(50, 60), 122]
        assert await torrent.evict(gone)
        left = len(content) - 20 * PIECE - (len(content) - 122 * PIECE)
        assert torrent.have_bytes == left
        assert before - room(torrent) >= 20 * PIECE - 4 * 4096
        assert is_tight(torrent)
        with HaveView(nodes.directory("2", torrent.info_hash) / "have") as view:
            assert [p for p in range(123) if not view.has(p, p)] == gone
        assert await torrent.verify(range(123)) == []
        with trio.fail_after(BOUND):
            assert await torrent.read(55 * PIECE - 5, 10) == content[55 * PIECE - 5 :][:10]
            assert await torrent.read(9 * PIECE, 2 * PIECE) == content[9 * PIECE : 11 * PIECE]
            assert await torrent.read(0, len(content)) == content
            await fetch_all(torrent)
        assert torrent.usable()
        assert torrent.traffic().payload_received - received == len(content) - left


async def test_all_of_it_goes(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        torrent = await fetched(nodes, seeder, reader, content)
        assert await torrent.evict(range(123))
        assert (room(torrent), torrent.have_bytes) == (0, 0)
        with trio.fail_after(BOUND):
            assert await torrent.read(0, len(content)) == content


async def test_a_file_system_without_holes_gives_back_the_end(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "punch_hole", lambda *_: False)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        torrent = await fetched(nodes, seeder, reader, content)
        assert await torrent.evict([5, *range(60, 123)])
        assert room(torrent) <= 60 * PIECE + 2 * 4096
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        await reader.restore()
        (torrent,) = reader.torrents
        assert torrent.have_bytes == 59 * PIECE
        await torrent.add_sources(Sources(peers=tuple(seeder.listen_ports)))
        await seeder.restore()
        with trio.fail_after(BOUND):
            assert await torrent.read(0, len(content)) == content


async def test_where_somebody_waits_nothing_goes(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("2") as reader:
        async with nodes.open("1") as seeder:
            torrent = await fetched(nodes, seeder, reader, content)
            assert await torrent.evict([7])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(torrent.read, 7 * PIECE, 1)
            await until(lambda: torrent.peers.wanted)
            assert not await torrent.evict([8])
            nursery.cancel_scope.cancel()
        assert await torrent.evict([8])


async def test_files_that_lie_elsewhere_or_have_other_names_are_left_alone(
    nodes: Nodes, content: bytes, tmp_path: Path
) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        torrent = await fetched(nodes, seeder, reader, content)
        (seeded,) = seeder.torrents
        assert not await seeded.evict([5])
        assert (nodes.root / "1.cloop").read_bytes() == content[INDEX_SIZE:]
        mirror = tmp_path / "mirror"
        mirror.hardlink_to(nodes.files("2", torrent.info_hash) / "pack")
        assert not await torrent.evict([5])
        assert mirror.read_bytes() == content[INDEX_SIZE:]
        mirror.unlink()
        assert await torrent.evict([5])


async def test_readers_go_on_while_pieces_come_and_go(nodes: Nodes, content: bytes) -> None:
    chance = random.Random(3)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        torrent = await fetched(nodes, seeder, reader, content)
        evicted = 0

        async def read() -> None:
            while evicted < 5:
                start = chance.randrange(len(content) - 1)
                length = chance.randrange(1, min(200_000, len(content) - start) + 1)
                assert await torrent.read(start, length) == content[start : start + length]

        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(read)
                while evicted < 5:
                    evicted += await torrent.evict(chance.sample(range(123), 30))
                    await trio.lowlevel.checkpoint()
        assert await torrent.verify(range(123)) == []


async def test_what_an_interrupted_eviction_left_is_given_back(
    nodes: Nodes, content: bytes
) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        torrent = await fetched(nodes, seeder, reader, content)
        torrent.store.stored.evict(range(100, 110))
        assert not is_tight(torrent)
        assert await torrent.evict(())
        assert is_tight(torrent)


async def test_a_disk_that_refuses_to_clear_bits_loses_nothing(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int) -> None:
        raise OSError(errno.EIO, "refused")

    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        torrent = await fetched(nodes, seeder, reader, content)
        before = room(torrent)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", refuse)
            for pieces in ([7], []):  # what was not made durable stays so
                with pytest.raises(StorageError) as caught:
                    await torrent.evict(pieces)
                assert caught.value.errno == errno.EIO
        assert room(torrent) == before
        assert await torrent.evict([])
        assert room(torrent) < before
        with trio.fail_after(BOUND):
            assert await torrent.read(0, len(content)) == content


async def test_killed_at_every_step(nodes: Nodes, content: bytes, tmp_path: Path) -> None:
    async with nodes.open("1") as seeder:
        async with nodes.open("2") as reader:
            torrent = await fetched(nodes, seeder, reader, content)
            layout, meta = await torrent.metadata(), torrent.store.stored._meta
        whole, store = tmp_path / "whole", tmp_path / "2" / "torrents"
        store.rename(whole)
        directory = store / torrent.info_hash.hex()
        steps = 0
        while True:
            shutil.copytree(whole, store)
            command = [sys.executable, "-c", _CHILD, str(store), str(steps)]
            child = await trio.run_process(command, capture_stdout=True, check=False)
            with HaveView(directory / "have") as view:
                here = [piece for piece in range(view.pieces) if view.has(piece, piece)]
            kept = Content(directory / "data", layout)
            assert kept.wrong_pieces(meta, here) == []
            assert set(range(123)) - set(here) <= {*range(2, 9), 20, 21}
            async with nodes.open("2") as reader:
                await reader.restore()
                (torrent,) = reader.torrents
                # Of pieces whose bits were cleared, those that keep their room are here again.
                right = layout.pieces - len(kept.wrong_pieces(meta, range(layout.pieces)))
                assert torrent.store.stored.have.count == right >= len(here)
                assert await torrent.evict(())
                assert is_tight(torrent)
                with trio.fail_after(BOUND):
                    assert await torrent.read(0, len(content)) == content
            shutil.rmtree(store)
            if child.returncode == 0:
                break
            assert child.returncode == -signal.SIGKILL
            steps += 1
        # 3 bytes of bits, one sync, and holes: 2 to 9 in both files, 20 and 21 in the pack.
        assert steps == 7


async def test_a_torrent_is_removed_for_good(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        torrent = await fetched(nodes, seeder, reader, content)
        tmp = nodes.root / "2" / "tmp"
        tmp.mkdir()
        assert await reader.remove(torrent.info_hash, tmp)
        assert not await reader.remove(torrent.info_hash, tmp)
        assert (reader.torrents, list(tmp.iterdir())) == ((), [])
        assert list((nodes.root / "2" / "torrents").iterdir()) == []
        with pytest.raises(NotHereError, match="removed"):
            await torrent.read(0, 1)
        again = await reader.add(torrent.info_hash, peers=seeder.listen_ports)
        assert again is not torrent
        with trio.fail_after(BOUND):
            assert await again.read(0, len(content)) == content


async def test_removing_one_that_is_seeded_in_place_leaves_its_file(
    nodes: Nodes, content: bytes
) -> None:
    async with nodes.open("1") as seeder:
        source = nodes.source("1", content)
        torrent = await seeder.seed(source.staging)
        assert await seeder.remove(torrent.info_hash, nodes.root / "1" / "tmp")
        assert source.pack.read_bytes() == content[INDEX_SIZE:]


async def test_one_that_somebody_waits_for_is_not_removed(nodes: Nodes) -> None:
    async with nodes.open("2") as reader:
        torrent = await reader.add(NOBODYS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(torrent.metadata)
            await until(lambda: torrent.peers.wanted)
            assert not await reader.remove(NOBODYS, nodes.root)
            nursery.cancel_scope.cancel()
    assert nodes.directory("2", NOBODYS).exists()
