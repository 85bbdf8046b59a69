"""Flipped bytes on the disk, peers that lie, files that change where they lie."""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pcloop.errors import CorruptError, MismatchError
from p2pcloop.store.have import HaveFile
from p2pcloopd.engine.disk.record import Sources
from p2pcloopd.engine.fetch.backfill import fetch_all
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes, flip, open_at
from tests.support.waiting import BOUND, until

PIECE = 16384


async def test_flipped_byte_is_healed(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await fetch_all(torrent)
            pack = nodes.files("2", seeded.info_hash) / "pack"
            offset = 60 * PIECE + 77
            flip(pack, offset - 50_001)
            before = content[offset - 100 : offset + 2 * PIECE]
            assert await torrent.read(offset - 100, len(before)) != before
            assert await torrent.read(offset - 100, len(before), heal=True) == before
            await torrent.save()
            assert await torrent.read(offset - 100, len(before)) == before
        assert torrent.usable()
        assert pack.read_bytes() == content[50_001:]


@pytest.mark.parametrize("found_by", ["audit", "reader"])
async def test_a_piece_that_has_just_come_and_is_wrong_on_the_disk_comes_again(
    nodes: Nodes, content: bytes, found_by: str
) -> None:
    """It was in memory still, so it counted as here, and p2pcloopd asked for it without a pause."""
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            at = 60 * PIECE
            assert await torrent.read(at, PIECE) == content[at:][:PIECE]
            await torrent.save()
            flip(nodes.files("2", seeded.info_hash) / "pack", at + 77 - 50_001)
            if found_by == "audit":
                torrent.audit.suspect([60])
                await until(lambda: not torrent.store.stored.wrong([60]))
            assert await torrent.read(at, PIECE, heal=True) == content[at:][:PIECE]
            await torrent.save()
            assert torrent.store.stored.wrong([60]) == []


@pytest.mark.parametrize("damage", ["cut short", "emptied", "deleted"])
async def test_file_that_is_cut_short_while_in_use_is_healed_for_who_reads(
    nodes: Nodes, content: bytes, damage: str
) -> None:
    """Also for a read that does not ask to heal: without the have file no wrong byte is known."""
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await fetch_all(torrent)
            pack = nodes.files("2", seeded.info_hash) / "pack"
            if damage == "deleted":
                pack.unlink()
            else:
                os.truncate(pack, 20 * PIECE if damage == "cut short" else 0)
            offset = 60 * PIECE + 77
            assert await torrent.read(offset, 3 * PIECE) == content[offset:][: 3 * PIECE]
            await torrent.save()
            await fetch_all(torrent)
            assert await torrent.read(0, len(content)) == content
            await torrent.save()
        assert torrent.usable()
        assert pack.read_bytes() == content[50_001:]


async def test_heal_of_right_data_changes_nothing(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder:
        torrent = await seeder.seed(nodes.source("1", content).staging)
        assert await torrent.read(5, 100_000, heal=True) == content[5:100_005]
        assert torrent.usable()


async def test_other_readers_wait_through_healing(nodes: Nodes, content: bytes) -> None:
    source = nodes.source("1", content)
    async with nodes.open("2") as reader:
        async with nodes.open("1") as seeder:
            seeded = await seeder.seed(source.staging)
            address = seeder.listen_ports[0]
            torrent = await reader.add(seeded.info_hash, peers=[address])
            with trio.fail_after(BOUND):
                await torrent.read(0, 4 * PIECE)
                await torrent.save()
        flip(nodes.files("2", seeded.info_hash) / "index", 2 * PIECE)
        torrent.fetcher.wants._recent.clear()
        results: dict[int, bytes] = {}

        async def read(piece: int, *, heal: bool) -> None:
            results[piece] = await torrent.read(piece * PIECE, PIECE, heal=heal)

        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(read, 70, heal=False))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(partial(read, 2, heal=True))
                await until(lambda: 2 in torrent.fetcher.wants.read)
                assert await torrent.read(3 * PIECE, PIECE) == content[3 * PIECE : 4 * PIECE]
                async with nodes.open("1", address[1]) as seeder:
                    await seeder.restore()
                    await until(lambda: len(results) == 2)
        assert results == {p: content[p * PIECE : (p + 1) * PIECE] for p in (2, 70)}


@pytest.mark.parametrize("same_address", [False, True])
async def test_peer_that_lies(
    nodes: Nodes,
    content: bytes,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    same_address: bool,
) -> None:
    """The liar has the torrent's metadata and other bytes, and says that it has nearly everything.

    One that has all compares each piece before it sends it, and so sends nothing.
    """
    async with nodes.open("1") as honest, nodes.open("2") as reader:
        seeded = await honest.seed(nodes.source("1", content).staging)
        liar_store = nodes.directory("3", seeded.info_hash)
        shutil.copytree(nodes.directory("1", seeded.info_hash), liar_store)
        for path in sorted((liar_store / "data").rglob("*")):
            if path.is_file():
                path.write_bytes(bytes(path.stat().st_size))
        have = HaveFile.open(liar_store / "have", seeded.info_hash, -(-len(content) // PIECE))
        have.drop(100)
        have.close()
        liar_name = "1" if same_address else "3"
        store = tmp_path / liar_name / ("liar" if same_address else "torrents")
        if same_address:
            shutil.copytree(tmp_path / "3" / "torrents", store)
        async with open_at(store, f"127.0.0.{liar_name}") as liar:
            await liar.restore()
            torrent = await reader.add(seeded.info_hash, peers=liar.listen_ports)
            with trio.fail_after(BOUND):
                await torrent.metadata()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(torrent.read, 0, PIECE)
                    await until(lambda: any("wrong bytes" in str(p) for p in torrent.peers.tried()))
                    await torrent.add_sources(Sources(peers=tuple(honest.listen_ports)))
                assert await torrent.read(0, len(content)) == content
                await fetch_all(torrent)
        assert "sent wrong bytes" in caplog.text
        assert torrent.usable()
        pack = nodes.files("2", seeded.info_hash) / "pack"
        assert pack.read_bytes() == content[50_001:]


async def test_seeded_file_is_never_written(nodes: Nodes, content: bytes) -> None:
    source = nodes.source("1", content)
    async with nodes.open("1") as seeder:
        seeded = await seeder.seed(source.staging)
        offset = 70 * PIECE
        async with nodes.open("3") as reader:
            torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
            with trio.fail_after(BOUND):
                assert await torrent.read(0, PIECE) == content[:PIECE]
        flip(source.pack, offset - 50_001)
        changed = hashlib.sha256(source.pack.read_bytes()).digest()
        mtime = source.pack.stat().st_mtime_ns
        async with nodes.open("2") as other:
            # Another node has the right data: it must not come back into the user's file.
            again = nodes.source("2", content)
            await other.seed(again.staging)
            await seeded.add_sources(Sources(peers=tuple(other.listen_ports)))
            async with nodes.open("3") as reader:
                torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
                with trio.fail_after(BOUND):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(torrent.read, offset, PIECE)
                        with pytest.raises(CorruptError, match="changed since it was seeded"):
                            await seeded.read(offset, PIECE, heal=True)
                        await torrent.add_sources(Sources(peers=tuple(other.listen_ports)))
                    await fetch_all(torrent)
                    assert await torrent.read(offset, PIECE) == content[offset:][:PIECE]
    assert hashlib.sha256(source.pack.read_bytes()).digest() == changed
    assert source.pack.stat().st_mtime_ns == mtime


async def test_seeded_file_is_gone(nodes: Nodes, content: bytes) -> None:
    source = nodes.source("1", content)
    async with nodes.open("1") as seeder:
        await seeder.seed(source.staging)
    source.pack.unlink()
    async with nodes.open("1") as seeder:
        await seeder.restore()
        (torrent,) = seeder.torrents
        with pytest.raises(CorruptError, match="is gone"):
            await torrent.read(0, PIECE)
        again = nodes.source("1", content)
        assert await seeder.seed(again.staging) is torrent
        assert await torrent.read(0, len(content)) == content


async def _read_when_it_can_be(torrent: Torrent) -> None:
    while True:
        try:
            await torrent.read(0, PIECE)
            return
        except CorruptError:
            await trio.sleep(0.1)


@pytest.mark.parametrize("back", ["in the same run", "later"])
async def test_seeded_file_is_away_for_a_while(nodes: Nodes, content: bytes, back: str) -> None:
    """A disk that is mounted later: what was known of the file is kept."""
    source = nodes.source("1", content)
    async with nodes.open("1") as seeder:
        info_hash = (await seeder.seed(source.staging)).info_hash
    have = nodes.directory("1", info_hash) / "have"
    before = have.read_bytes()
    away = source.pack.rename(source.pack.with_suffix(".away"))
    async with nodes.open("1") as seeder:
        await seeder.restore()
        (torrent,) = seeder.torrents
        with pytest.raises(CorruptError, match="is gone"):
            await torrent.read(0, PIECE)
        if back == "in the same run":
            away.rename(source.pack)
            with trio.fail_after(BOUND):
                await _read_when_it_can_be(torrent)
    assert have.read_bytes() == before
    if back == "later":
        away.rename(source.pack)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        await seeder.restore()
        (torrent,) = seeder.torrents
        assert await torrent.read(0, len(content)) == content
        other = await reader.add(info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            assert await other.read(0, len(content)) == content


async def test_changed_file_that_was_served_is_served_again_once_it_is_back(
    nodes: Nodes, content: bytes
) -> None:
    """libtorrent finds the change when it serves; the bits stay, for the file may come back."""
    source = nodes.source("1", content)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(source.staging)
        have = nodes.directory("1", seeded.info_hash) / "have"
        before = have.read_bytes()
        flip(source.pack, 70 * PIECE - 50_001)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch_all, torrent)
                await until(lambda: not seeded.usable())
                assert have.read_bytes() == before
                assert await seeder.seed(nodes.source("1", content).staging) is seeded
        assert seeded.usable()
        assert torrent.usable()


@pytest.mark.parametrize("old_is_gone", [True, False])
async def test_seeded_again_from_another_place(
    nodes: Nodes, content: bytes, old_is_gone: bool
) -> None:
    old = nodes.source("1", content)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(old.staging)
        if old_is_gone:
            old.pack.unlink()
        assert seeded.usable() is not old_is_gone
        new = nodes.source("1", content, "new")
        assert await seeder.seed(new.staging) is seeded
        used = new.pack if old_is_gone else old.pack
        assert (nodes.files("1", seeded.info_hash) / "pack").readlink() == used
        assert await seeded.read(0, len(content)) == content
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            assert await torrent.read(0, len(content)) == content


async def test_what_was_fetched_gives_no_way_to_a_file_that_may_change(
    nodes: Nodes, content: bytes
) -> None:
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await fetch_all(torrent)
        assert await reader.seed(nodes.source("2", content).staging) is torrent
        assert not (nodes.files("2", seeded.info_hash) / "pack").is_symlink()


async def test_torn_have_file_means_nothing_is_here(
    nodes: Nodes, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes.open("1") as seeder:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        async with nodes.open("2") as reader:
            torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
            with trio.fail_after(BOUND):
                await fetch_all(torrent)
        have = tmp_path / "2" / "torrents" / seeded.info_hash.hex() / "have"
        os.truncate(have, 20)
        async with nodes.open("2") as reader:
            await reader.restore()
            (torrent,) = reader.torrents
            assert torrent.have_bytes == 0
            assert "nothing of this torrent counts as here" in caplog.text
            with trio.fail_after(BOUND):
                assert await torrent.read(0, len(content)) == content
        layout = torrent.layout
        assert layout is not None
        kept = HaveFile.open(have, seeded.info_hash, layout.pieces)
        assert kept.complete()
        kept.close()


async def test_lost_end_of_a_file_is_noticed(
    nodes: Nodes, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes.open("1") as seeder:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        async with nodes.open("2") as reader:
            torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
            with trio.fail_after(BOUND):
                await fetch_all(torrent)
        os.truncate(nodes.files("2", seeded.info_hash) / "pack", 1_000_000)
        async with nodes.open("2") as reader:
            await reader.restore()
            (torrent,) = reader.torrents
            assert not torrent.usable()
            assert "gone from the disk" in caplog.text
            with trio.fail_after(BOUND):
                assert await torrent.read(0, len(content)) == content


async def test_what_is_not_what_it_should_be_is_served_to_nobody(
    nodes: Nodes, content: bytes
) -> None:
    """A mirror's directory may hold a link to any file of this machine."""
    source = nodes.source("1", content)
    async with nodes.open("1") as engine:
        with pytest.raises(MismatchError):
            await engine.seed(source.staging, expected=b"x" * 20)
        assert engine.torrents == ()
    assert not source.staging.exists()
    assert not list((nodes.root / "1").rglob("torrent"))
    assert source.pack.read_bytes() == content[50_001:]
