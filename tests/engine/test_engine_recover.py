"""What a crash left in the files, and had no have bit yet, is found by the next start."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest
import trio

from p2pcloop.errors import StorageError
from p2pcloop.store.have import HaveFile, HaveView
from p2pcloopd.engine.disk import stored
from p2pcloopd.engine.disk.content import Content
from p2pcloopd.engine.disk.holes import written
from p2pcloopd.engine.disk.metainfo import TorrentLayout
from p2pcloopd.engine.engine import Engine
from p2pcloopd.engine.fetch.backfill import fetch_all
from tests.support.engines import INDEX_SIZE, Nodes
from tests.support.waiting import BOUND

PIECE = 16384
PIECES = 123
SAVED = [10, 11]


async def fetch_some(nodes: Nodes, seeder: Engine, content: bytes) -> bytes:
    """Have node 2 fetch `SAVED` and end in order; return the info hash."""
    seeded = await seeder.seed(nodes.source("1", content).staging)
    async with nodes.open("2") as reader:
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.read(SAVED[0] * PIECE, len(SAVED) * PIECE)
        assert mark(nodes, seeded.info_hash).exists()
    assert not mark(nodes, seeded.info_hash).exists()
    return seeded.info_hash


def mark(nodes: Nodes, info_hash: bytes) -> Path:
    return nodes.directory("2", info_hash) / "open"


def write(nodes: Nodes, info_hash: bytes, content: bytes, pieces: Iterable[int]) -> None:
    """Put pieces into node 2's files, as libtorrent does it."""
    pack = nodes.files("2", info_hash) / "pack"
    with open(pack, "r+b" if pack.exists() else "wb") as file:
        for piece in pieces:
            file.seek(piece * PIECE - INDEX_SIZE)
            file.write(content[piece * PIECE :][:PIECE])


def here(nodes: Nodes, info_hash: bytes) -> list[int]:
    with HaveView(nodes.directory("2", info_hash) / "have") as view:
        return [piece for piece in range(view.pieces) if view.has(piece, piece)]


async def test_right_pieces_count_and_nothing_of_them_comes_again(
    nodes: Nodes, content: bytes
) -> None:
    async with nodes.open("1") as seeder:
        info_hash = await fetch_some(nodes, seeder, content)
        write(nodes, info_hash, content, [30, 31, 32, PIECES - 1])
        write(nodes, info_hash, bytes(len(content)), [40])  # zeros that are no hole
        write(nodes, info_hash, content[::-1], [41])
        mark(nodes, info_hash).touch()
        found = [*SAVED, 30, 31, 32, PIECES - 1]
        async with nodes.open("2") as reader:
            await reader.restore()
            assert here(nodes, info_hash) == found
            (torrent,) = reader.torrents
            (statistics,) = (await reader.statistics()).torrents
            had = sum(len(content[piece * PIECE :][:PIECE]) for piece in found)
            assert (statistics.have_bytes, statistics.received) == (had, 0)
            with trio.fail_after(BOUND):
                await fetch_all(torrent)
                assert await torrent.read(0, len(content)) == content
            (statistics,) = (await reader.statistics()).torrents
            assert (statistics.received, statistics.received_again) == (len(content) - had, 0)


async def test_content_is_synced_before_its_bits_are_set(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.open("1") as seeder:
        info_hash = await fetch_some(nodes, seeder, content)
    write(nodes, info_hash, content, [30])
    mark(nodes, info_hash).touch()
    steps: list[str] = []
    sync, add = Content.sync, HaveFile.add

    def note_sync(self: Content) -> None:
        steps.append("sync")
        sync(self)

    def note_add(self: HaveFile, pieces: Iterable[int]) -> None:
        steps.append("add")
        add(self, pieces)

    monkeypatch.setattr(Content, "sync", note_sync)
    monkeypatch.setattr(HaveFile, "add", note_add)
    async with nodes.open("2") as reader:
        await reader.restore()
        assert steps == ["sync", "add"]


async def test_files_are_not_looked_through_after_an_end_in_order(
    nodes: Nodes, content: bytes
) -> None:
    async with nodes.open("1") as seeder:
        info_hash = await fetch_some(nodes, seeder, content)
    write(nodes, info_hash, content, [30])
    async with nodes.open("2") as reader:
        await reader.restore()
        assert here(nodes, info_hash) == SAVED


async def test_a_start_compares_so_much_and_no_more(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.open("1") as seeder:
        info_hash = await fetch_some(nodes, seeder, content)
    write(nodes, info_hash, content, range(30, 60))
    mark(nodes, info_hash).touch()
    monkeypatch.setattr(stored, "RECOVERED_BYTES", 5 * PIECE)
    async with nodes.open("2") as reader:
        await reader.restore()
        assert here(nodes, info_hash) == [*SAVED, *range(30, 35)]


async def test_a_disk_that_cannot_read_what_is_left_holds_nothing_up(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.open("1") as seeder:
        info_hash = await fetch_some(nodes, seeder, content)
        write(nodes, info_hash, content, [30])
        mark(nodes, info_hash).touch()

        def fail(*_: object) -> list[int]:
            raise StorageError("a bad sector", errno=errno.EIO)

        async with nodes.open("2") as reader:
            with monkeypatch.context() as patch:
                patch.setattr(Content, "wrong_pieces", fail)
                await reader.restore()
            assert here(nodes, info_hash) == SAVED
            (torrent,) = reader.torrents
            with trio.fail_after(BOUND):
                assert await torrent.read(0, len(content)) == content


async def test_an_end_before_all_is_saved_leaves_the_mark(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("the disk is gone", errno=errno.EIO)

    async with nodes.open("1") as seeder:
        info_hash = await fetch_some(nodes, seeder, content)
        async with nodes.open("2") as reader:
            await reader.restore()
            (torrent,) = reader.torrents
            with monkeypatch.context() as patch:
                patch.setattr(Content, "sync", fail)
                with trio.fail_after(BOUND):
                    assert await torrent.read(30 * PIECE, PIECE)
                await reader.close()
        assert mark(nodes, info_hash).exists()
        async with nodes.open("2") as reader:
            await reader.restore()
            assert here(nodes, info_hash) == [*SAVED, 30]


def test_runs_without_holes_go_from_file_to_file(tmp_path: Path) -> None:
    block = 1 << 16
    files = [("a", 3 * block), ("b", block), ("gone", block), ("c", 2 * block)]
    layout = TorrentLayout("t", tuple((PurePosixPath(n), s) for n, s in files), PIECE, 7 * block)
    for name, first in (("a", 1), ("b", 0), ("c", 0)):
        with open(tmp_path / name, "wb") as file:
            file.seek(first * block)
            file.write(bytes(block))
    with open(tmp_path / "a", "ab") as file:
        file.write(bytes(2 * block))  # longer than it should be
    runs = [run for run in written(Content(tmp_path, layout), layout) if run[0] < run[1]]
    assert runs == [(block, 4 * block), (5 * block, 6 * block)]
