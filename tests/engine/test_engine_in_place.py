"""Files that are seeded where they lie: swapped, moved, written to; and rot on the disk."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pcloop.errors import BusyError, CorruptError, NotHereError
from p2pcloop.store.have import HaveFile
from p2pcloop.store.in_place import STAMPS
from p2pcloopd.engine.disk import seeding
from p2pcloopd.engine.disk.content import Content, hash_pieces
from p2pcloopd.engine.disk.copies import COPIES, load_copies, record_copy
from p2pcloopd.engine.disk.metainfo import Metainfo, TorrentLayout
from p2pcloopd.engine.disk.record import Sources
from p2pcloopd.engine.fetch.backfill import fetch_all
from p2pcloopd.engine.fetch.tuning import TUNING
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes, Source, flip
from tests.support.waiting import BOUND, until

PIECE = 16384


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    """Nodes that look often at what they seed."""
    return Nodes(tmp_path, replace(TUNING, in_place_look=0.05))


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


def state(torrent: Torrent) -> str | None:
    return torrent.trouble()[0]


async def becomes(torrent: Torrent, expected: str | None) -> None:
    with trio.fail_after(BOUND):
        await until(lambda: state(torrent) == expected)


def link_to_secret(pack: Path) -> None:
    pack.with_name("link").symlink_to(pack.with_name("secret"))
    pack.with_name("link").replace(pack)


def hard_link_to_secret(pack: Path) -> None:
    pack.with_name("link").hardlink_to(pack.with_name("secret"))
    pack.with_name("link").replace(pack)


def directory_swapped(pack: Path) -> None:
    pack.parent.rename(pack.parent.with_name("moved"))
    hidden = pack.parent.with_name("hidden")
    hidden.mkdir()
    (hidden / pack.name).write_bytes((pack.parent.with_name("moved") / "secret").read_bytes())
    pack.parent.symlink_to(hidden)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("swap", "told"),
    [(link_to_secret, "gone"), (hard_link_to_secret, "changed"), (directory_swapped, "gone")],
)
async def test_a_file_that_was_swapped_is_shown_to_nobody(
    nodes: Nodes, content: bytes, swap: Callable[[Path], None], told: str, restart: bool
) -> None:
    """The secret is as long as the image, and only the node's user may read it."""
    (nodes.root / "open").mkdir()
    source = nodes.source("1", content, "open/1")
    source.pack.with_name("secret").write_bytes(b"s" * source.pack.stat().st_size)
    engine = nodes.open("1")
    async with engine as seeder:
        seeded = await seeder.seed(source.staging)
        held = seeded.store.stored.content
        assert held.read(70 * PIECE, 100) == content[70 * PIECE :][:100]
        swap(source.pack)
        assert held.read(70 * PIECE, 100) == content[70 * PIECE :][:100], "the one that was opened"
        if not restart:
            await _shows_nothing(nodes, seeded, seeder.listen_ports, told)
    if restart:
        async with nodes.open("1") as seeder:
            await seeder.restore()
            (seeded,) = seeder.torrents
            await _shows_nothing(nodes, seeded, seeder.listen_ports, told)


async def _shows_nothing(
    nodes: Nodes, seeded: Torrent, address: list[tuple[str, int]], told: str
) -> None:
    await becomes(seeded, told)
    assert seeded.have_bytes == 0
    assert not seeded.store.stored.has(70 * PIECE, 100)
    with pytest.raises(CorruptError, match=told):
        await seeded.read(70 * PIECE, 100)
    async with nodes.open("2") as reader:
        torrent = await reader.add(seeded.info_hash, peers=address)
        with trio.move_on_after(0.5):
            await torrent.read(70 * PIECE, 100)
        assert torrent.have_bytes == 0


def open_files() -> set[str]:
    """What this process has open."""
    return {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("start", ["away", "there"])
async def test_a_file_that_comes_back_is_served_again(
    nodes: Nodes, content: bytes, start: str
) -> None:
    source = nodes.source("1", content)
    away = source.pack.with_suffix(".away")
    async with nodes.open("1") as seeder:
        info_hash = (await seeder.seed(source.staging)).info_hash
        if start == "away":
            source.pack.rename(away)
    # A thread that looks at it may be about to end.
    names = {str(source.pack), str(away)}
    await until(lambda: not names & open_files(), "it is let go of")
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        await seeder.restore()
        (seeded,) = seeder.torrents
        if start == "there":
            source.pack.rename(away)
        await becomes(seeded, "gone")
        await until(lambda: str(away) not in open_files(), "its disk may be unplugged")
        torrent = await reader.add(info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch_all, torrent)
                away.rename(source.pack)
        await becomes(seeded, None)
        assert seeded.have_bytes == len(content)


def _touch(pack: Path) -> None:
    os.utime(pack)


def _copy(pack: Path) -> None:
    pack.with_suffix(".copy").write_bytes(pack.read_bytes())
    pack.with_suffix(".copy").replace(pack)


@pytest.mark.parametrize("change", [_touch, _copy])
async def test_what_is_the_same_content_is_compared_and_served(
    nodes: Nodes, content: bytes, change: Callable[[Path], None]
) -> None:
    source = nodes.source("1", content)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(source.staging)
        kept = nodes.directory("1", seeded.info_hash) / STAMPS
        before = kept.read_bytes()
        change(source.pack)
        with trio.fail_after(BOUND):
            await until(lambda: kept.read_bytes() != before)
        await becomes(seeded, None)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await fetch_all(torrent)


def copy_of(nodes: Nodes, content: bytes) -> Source:
    """The same image once more for node 1, and its pack under another name."""
    shutil.rmtree(nodes.root / "1" / "tmp", ignore_errors=True)
    return nodes.source("1", content, "copy")


def read_from(seeded: Torrent) -> list[Path]:
    return [held.path for held in seeded.store.stored.content.held().values()]


async def test_a_copy_takes_over_where_the_first_is_gone_and_the_other_way_round(
    nodes: Nodes, content: bytes
) -> None:
    """Seeding a copy moved all names of the image to it: where it was deleted, all were gone."""
    async with nodes.open("1") as seeder:
        first = nodes.source("1", content).pack
        seeded = await seeder.seed(nodes.root / "1" / "tmp" / "staging")
        source = copy_of(nodes, content)
        assert await seeder.seed(source.staging) is seeded
        assert not source.staging.exists()
        assert read_from(seeded) == [first]
        away = first.rename(first.with_name("away"))
        with trio.fail_after(BOUND):
            await until(lambda: read_from(seeded) == [source.pack] and state(seeded) is None)
            assert await seeded.read(70 * PIECE, 100) == content[70 * PIECE :][:100]
        source.pack.unlink()
        await becomes(seeded, "gone")
        away.rename(first)
        await becomes(seeded, None)
        assert read_from(seeded) == [first]


async def test_a_copy_takes_over_from_a_file_with_a_wrong_piece(
    nodes: Nodes, content: bytes
) -> None:
    async with nodes.open("1") as seeder:
        first = nodes.source("1", content).pack
        await seeder.seed(nodes.root / "1" / "tmp" / "staging")
        copy = copy_of(nodes, content)
        await seeder.seed(copy.staging)
    flip(first, 30 * PIECE)
    async with nodes.open("1") as seeder:  # it is noted for later runs, too
        await seeder.restore()
        (seeded,) = seeder.torrents
        with trio.fail_after(BOUND):
            await until(lambda: read_from(seeded) == [copy.pack] and state(seeded) is None)
            assert await seeded.read(0, len(content)) == content


async def test_files_that_are_all_wrong_are_compared_once(
    nodes: Nodes, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes.open("1") as seeder:
        first = nodes.source("1", content).pack
        seeded = await seeder.seed(nodes.root / "1" / "tmp" / "staging")
        copy = copy_of(nodes, content)
        await seeder.seed(copy.staging)
        flip(first, 30 * PIECE)
        flip(copy.pack, 40 * PIECE)
        with trio.fail_after(BOUND):
            await until(lambda: caplog.text.count("is being compared") == 2)
        await becomes(seeded, "changed")
        for _ in range(5):
            await seeded.in_place.look()
        assert caplog.text.count("is being compared") == 2
        flip(first, 30 * PIECE)
        await becomes(seeded, None)
        assert read_from(seeded) == [first]


async def test_a_copy_that_became_a_link_is_not_followed(nodes: Nodes, content: bytes) -> None:
    async with nodes.open("1") as seeder:
        first = nodes.source("1", content).pack
        seeded = await seeder.seed(nodes.root / "1" / "tmp" / "staging")
        copy = copy_of(nodes, content)
        await seeder.seed(copy.staging)
        copy.pack.rename(copy.pack.with_name("secret"))
        link_to_secret(copy.pack)
        first.unlink()
        await becomes(seeded, "gone")
        await seeded.in_place.look()
        assert state(seeded) == "gone"


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\x82\xa6format\x02\xa6copies\x90"])
def test_notes_of_copies_that_are_damaged_are_none(tmp_path: Path, damage: bytes) -> None:
    place = {Path("image/pack"): Path("/else\udcff")}
    record_copy(tmp_path, place)
    record_copy(tmp_path, place)
    assert load_copies(tmp_path) == [place]
    (tmp_path / COPIES).write_bytes(damage)
    assert load_copies(tmp_path) == []


async def test_a_home_of_an_older_version_has_no_stamps(nodes: Nodes, content: bytes) -> None:
    source = nodes.source("1", content)
    async with nodes.open("1") as seeder:
        info_hash = (await seeder.seed(source.staging)).info_hash
    kept = nodes.directory("1", info_hash) / STAMPS
    kept.unlink()
    async with nodes.open("1") as seeder:
        await seeder.restore()
        (torrent,) = seeder.torrents
        assert await torrent.read(0, len(content)) == content, "a reader waits until it is compared"
    assert kept.exists()


async def test_what_is_written_to_while_it_is_hashed_is_refused(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = nodes.source("1", content)

    def hash_slowly(
        content: Content, layout: TorrentLayout, progress: Callable[[int, int], None]
    ) -> bytes:
        hashes = hash_pieces(content, layout, progress)
        flip(source.pack, 5)
        return hashes

    monkeypatch.setattr(seeding, "hash_pieces", hash_slowly)
    async with nodes.open("1") as seeder:
        with pytest.raises(BusyError, match="written to"):
            await seeder.seed(source.staging)
        assert seeder.torrents == ()


async def test_a_caller_who_goes_away_ends_the_hashing(nodes: Nodes) -> None:
    source = nodes.source("1", random.Random(1).randbytes(40 << 20))
    begun, gone = trio.Event(), threading.Event()
    told: list[int] = []

    def progress(done: int, _total: int) -> None:
        told.append(done)
        trio.from_thread.run_sync(begun.set)
        assert gone.wait(BOUND)

    async with nodes.open("1") as seeder, trio.open_nursery() as nursery:
        nursery.start_soon(seeder.seed, source.staging, progress)
        await begun.wait()
        nursery.cancel_scope.cancel()
        gone.set()
    assert told == [1 << 20]


async def test_a_file_that_cannot_be_read_is_not_served_for_a_while(
    nodes: Nodes, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """libtorrent tells of it before a look, and gives the torrent up until it is joined."""
    source = nodes.source("1", content)
    rarely = replace(TUNING, in_place_look=1000)
    async with nodes.open("1", tuning=rarely) as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(source.staging)
        await until(lambda: seeded.store.running)
        os.truncate(source.pack, 1_000_000)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_all, torrent)
            with trio.fail_after(BOUND):
                await until(lambda: state(seeded) is not None)
            with pytest.raises(CorruptError, match="changed since it was seeded"):
                await seeded.read(0, PIECE)
            source.pack.write_bytes(content[50_001:])
            assert await seeded.read(0, PIECE) == content[:PIECE]
        assert torrent.usable()
    assert "is served again" in caplog.text


def during_a_comparison(monkeypatch: pytest.MonkeyPatch, pack: Path) -> list[int]:
    """Have a byte flipped right after pieces were compared, and before the result is looked at.

    Returns:
        Where it is to be flipped yet.
    """
    compare = Content.wrong_pieces
    flips = [70 * PIECE - 50_001]

    def compare_slowly(content: Content, meta: Metainfo, pieces: Iterable[int]) -> list[int]:
        wrong = compare(content, meta, pieces)
        while flips:
            flip(pack, flips.pop())
            later(pack)
        return wrong

    monkeypatch.setattr(Content, "wrong_pieces", compare_slowly)
    return flips


def later(pack: Path) -> None:
    """Have a file written to later than its clock tells apart."""
    now = pack.stat().st_mtime_ns
    os.utime(pack, ns=(now, now + 1_000_000_000))


async def test_what_is_put_right_while_it_is_compared_is_served_again(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = nodes.source("1", content)
    async with nodes.open("1") as seeder:
        seeded = await seeder.seed(source.staging)
        await until(lambda: seeded.store.running)
        flips = during_a_comparison(monkeypatch, source.pack)
        flip(source.pack, 70 * PIECE - 50_001)
        later(source.pack)
        with trio.fail_after(BOUND):
            await until(lambda: not flips)
        await becomes(seeded, None)
        assert seeded.usable()


async def test_what_is_spoiled_while_it_is_compared_is_not_served(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = nodes.source("1", content)
    async with nodes.open("1") as seeder:
        seeded = await seeder.seed(source.staging)
        await until(lambda: seeded.store.running)
        during_a_comparison(monkeypatch, source.pack)
        later(source.pack)
        await becomes(seeded, "changed")


async def test_rot_of_a_file_in_place_is_told(nodes: Nodes, content: bytes) -> None:
    """A byte that flips on the disk changes no time; put right again, the file is served again."""
    source = nodes.source("1", content)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(source.staging)
        stored = seeded.store.stored
        flip(source.pack, 70 * PIECE - 50_001)
        stored._right = stored.content.stamps()  # as if nothing had been written
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_all, torrent)
            await becomes(seeded, "changed")
            assert torrent.have_bytes < len(content)
            assert not torrent.peers.banned, "no wrong byte was sent"
            flip(source.pack, 70 * PIECE - 50_001)
            await becomes(seeded, None)
        assert torrent.usable()


def own(nodes: Nodes, name: str, content: bytes) -> tuple[Path, Path]:
    """Content that becomes the node's own: staging, and its pack."""
    source = nodes.source(name, content)
    pack = source.staging / "data" / "image" / "pack"
    pack.unlink()
    source.pack.rename(pack)
    return source.staging, pack


async def test_rot_of_our_own_is_healed_before_it_is_sent(nodes: Nodes, content: bytes) -> None:
    """One flipped bit of the only seeder left its readers at 99 % for ever."""
    staging, _ = own(nodes, "1", content)
    async with nodes.open("1") as seeder, nodes.open("2") as reader, nodes.open("3") as other:
        seeded = await seeder.seed(staging)
        pack = nodes.files("1", seeded.info_hash) / "pack"
        for piece in (70, 71, 90):
            flip(pack, piece * PIECE - 50_001)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_all, torrent)
            await becomes(seeded, "damaged")
            with trio.fail_after(BOUND):
                await until(lambda: torrent.have_bytes == len(content) - 3 * PIECE)
                assert seeded.audit.lost() == [70, 71, 90], "all of it was compared then"
                assert not torrent.peers.banned
                await other.seed(nodes.source("3", content).staging)
                await seeded.add_sources(Sources(peers=tuple(other.listen_ports)))
                await becomes(seeded, None)
        await seeded.save()
        assert pack.read_bytes() == content[50_001:]
        assert torrent.usable()


async def test_rot_of_a_part_is_noticed_once_it_was_sent(nodes: Nodes, content: bytes) -> None:
    staging, _ = own(nodes, "1", content)
    async with nodes.open("1") as seeder:
        info_hash = (await seeder.seed(staging)).info_hash
    have = HaveFile.open(
        nodes.directory("1", info_hash) / "have", info_hash, -(-len(content) // PIECE)
    )
    have.drop(100)
    have.close()
    flip(nodes.files("1", info_hash) / "pack", 70 * PIECE - 50_001)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        await seeder.restore()
        (seeded,) = seeder.torrents
        torrent = await reader.add(info_hash, peers=seeder.listen_ports)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(torrent.read, 70 * PIECE, PIECE)
            await becomes(seeded, "damaged")
            assert seeded.audit.lost() == [70]
            nursery.cancel_scope.cancel()


async def test_what_others_are_given_was_compared(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, _ = own(nodes, "1", content)
    async with nodes.open("1") as seeder:
        seeded = await seeder.seed(staging)
        stored = seeded.store.stored
        pack = nodes.files("1", seeded.info_hash) / "pack"
        for at, length in ((0, 10), (70 * PIECE - 5, 10), (50_000, 3 * PIECE), (0, len(content))):
            assert await seeded.audit.read(at, length) == content[at:][:length]
        compared: list[int] = []
        is_right = stored.is_right

        def compare(piece: int, data: bytes) -> bool:
            compared.append(piece)
            return is_right(piece, data)

        monkeypatch.setattr(stored, "is_right", compare)
        await seeded.audit.read(70 * PIECE, 10)
        assert compared == [], "it was compared a moment ago"
        flip(pack, 70 * PIECE - 50_001 + 9000)
        await seeded.audit.read(71 * PIECE, 10)
        assert compared == [71], "the file was written to"
        with pytest.raises(NotHereError, match="piece 70"):
            await seeded.audit.read(70 * PIECE, 10)
        await becomes(seeded, "damaged")
        with pytest.raises(NotHereError):
            await seeded.audit.read(70 * PIECE, 10)
