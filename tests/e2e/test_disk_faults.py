"""A reader's own disk: chunks that rot in the store, no room for store or overlay."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.errors import CorruptError, StorageError
from tests.support.programs import Guest, Node, Nodes, read_until, started, tool
from tests.support.waiting import BOUND

from .conftest import DATA

pytestmark = pytest.mark.e2e

MD5 = hashlib.md5(DATA).hexdigest()


def pack_of(node: Node, torrent: str) -> Path:
    [pack] = (node.home.torrents / torrent / "data").rglob("pack")
    assert pack.is_file()
    assert not pack.is_symlink()
    return pack


def rot(path: Path) -> int:
    """Flip a bit in every 50,000 bytes of a file; return how many."""
    with path.open("r+b") as file:
        data = bytearray(file.read())
        flipped = range(25_000, len(data), 50_000)
        for offset in flipped:
            data[offset] ^= 1
        file.seek(0)
        file.write(data)
    return len(flipped)


def test_rotten_chunks_are_healed_under_readers(nodes: Nodes, image: Path, cloop: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    seeded = seeder.seed(cloop)
    reader.run("fetch", seeded["link"])
    pack = pack_of(reader, seeded["torrent"])
    before = pack.read_bytes()
    assert rot(pack) > 100
    socket, out = nodes.directory / "nbd", nodes.directory / "out.img"
    with reader.started("block", seeded["name"], "--nbd", f"unix:{socket}") as serving:
        read_until(serving, "serving at")
        tool("nbdcopy", f"nbd+unix:///?socket={socket}", out)
    assert out.read_bytes() == image.read_bytes()

    rot(pack)
    with Guest(reader, seeded["name"]) as guest:
        guest.prompt()
        assert MD5 in guest.sh("md5sum /root/data")
        # Behind the block server's back, but for what it has in memory.
        rot(pack)
        assert MD5 in guest.sh("echo 3 > /proc/sys/vm/drop_caches; md5sum /root/data")
        assert "error" not in guest.sh("dmesg | grep -i error; true")
        guest.power_off()
    reader.run("verify", seeded["name"], code=CorruptError.exit_code)
    reader.run("fetch", seeded["name"])
    assert reader.json("verify", seeded["name"])["bad"] == 0
    assert pack.read_bytes() == before


class SmallDisk:
    """A file system of its own, in a mount namespace: it can be full, and be made larger."""

    def __init__(self, place: Path, holder: subprocess.Popen[str]) -> None:
        self._holder = holder
        self.outside = Path(f"/proc/{holder.pid}/root{place}")
        self.place = place
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        self.inside = ("nsenter", "--mount", *user, "--target", str(holder.pid), "--")

    def resize(self, size: str) -> None:
        tool(*self.inside, "mount", "-o", f"remount,size={size}", self.place)


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[SmallDisk]:
    place.mkdir()
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    mount = 'mount -t tmpfs -o size="$1",mode=700 none "$2"'
    script = f"{mount} && echo mounted >&2 && exec sleep infinity"
    with started(["unshare", "--mount", *user, "sh", "-c", script, "sh", size, place]) as holder:
        read_until(holder, "mounted")
        yield SmallDisk(place, holder)


def test_no_room_for_the_overlay(nodes: Nodes, cloop: Path) -> None:
    with small_disk(nodes.directory / "small", "4M") as disk:
        node = nodes.make(inside=disk.inside)
        overlay = disk.place / "mine.delta"
        with Guest(node, cloop, "--overlay", overlay) as guest:
            guest.prompt()
            guest.sh("head -c 500000 /root/data > /root/kept && sync")
            told = guest.sh("dd if=/root/data of=/root/large bs=64k conv=fsync; echo status $?")
            assert "status 1" in told
            assert "error" in told.lower()
            # What is there stays readable, and the guest can be ended.
            assert MD5 in guest.sh("md5sum /root/data")
            guest.power_off()
        assert "No space left on device" in guest.said
        assert node.json("info", overlay)["changed"] > 500_000

        disk.resize("64M")
        with Guest(node, cloop, "--overlay", overlay) as guest:
            guest.prompt()
            kept = hashlib.md5(DATA[:500_000]).hexdigest()
            assert kept in guest.sh("md5sum /root/kept")
            guest.sh("dd if=/root/data of=/root/large bs=64k conv=fsync")
            assert MD5 in guest.sh("md5sum /root/large")
            guest.power_off()
        merged = nodes.directory / "merged.img"
        node.run("export", cloop, merged, "--overlay", overlay)
    tool("e2fsck", "-fn", merged)


def test_no_room_in_the_store(nodes: Nodes, image: Path, cloop: Path) -> None:
    seeder = nodes.make()
    link = seeder.seed(cloop)["link"]
    with small_disk(nodes.directory / "small", "3M") as disk:
        reader = nodes.make(inside=disk.inside, root=disk.place)
        reader.run("daemon", "start")
        try:
            failed = reader.run("fetch", link, code=StorageError.exit_code)
            assert "No space left on device" in failed.err
            assert "pid" in reader.json("status")

            disk.resize("64M")
            fetch_again(reader, link)
            assert reader.json("verify", link)["bad"] == 0
            out = nodes.directory / "out.img"
            reader.run("export", link, out)
            assert out.read_bytes() == image.read_bytes()
        finally:
            reader.run("daemon", "stop")


def fetch_again(node: Node, link: str) -> None:
    """Fetch until it works: for a moment a torrent remembers what the disk said."""
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        with node.started("fetch", link) as fetching:
            _, err = fetching.communicate(timeout=BOUND)
        if fetching.returncode == 0:
            return
        assert fetching.returncode == StorageError.exit_code, err
    raise AssertionError(err)


def test_files_of_the_store_that_are_cut_short_under_a_reader_are_healed(
    nodes: Nodes, image: Path, cloop: Path
) -> None:
    """No I/O error, and no SIGBUS for who looks into an emptied have file."""
    seeder, reader = nodes.make(), nodes.make()
    seeded = seeder.seed(cloop)
    reader.run("fetch", seeded["link"])
    pack = pack_of(reader, seeded["torrent"])
    socket, out = nodes.directory / "nbd", nodes.directory / "out.img"
    uri = f"nbd+unix:///?socket={socket}"
    with reader.started("block", seeded["name"], "--nbd", f"unix:{socket}") as serving:
        read_until(serving, "serving at")
        tool("/usr/bin/python3", "-m", "nbd", "-u", uri, "-c", "h.pread(4096, 0)")
        os.truncate(pack.parents[2] / "have", 0)
        os.truncate(pack, pack.stat().st_size // 10)
        os.truncate(pack.with_name("index"), 0)
        tool("nbdcopy", uri, out)
        assert serving.poll() is None
    assert out.read_bytes() == image.read_bytes()


@contextlib.contextmanager
def reading_into_a_full_store(
    nodes: Nodes, link: str
) -> Iterator[tuple[subprocess.Popen[str], str, SmallDisk]]:
    """A block server whose store takes little: its process, its URI, and the disk of the store."""
    with small_disk(nodes.directory / "small", "2M") as disk:
        reader = nodes.make(inside=disk.inside, root=disk.place)
        reader.run("daemon", "start")
        socket = nodes.directory / "nbd"
        try:
            with reader.started("block", link, "--nbd", f"unix:{socket}") as serving:
                read_until(serving, "serving at")
                yield serving, f"nbd+unix:///?socket={socket}", disk
        finally:
            reader.run("daemon", "stop")


def test_reads_go_on_from_memory_while_the_store_is_full(
    nodes: Nodes, image: Path, cloop: Path
) -> None:
    link, out = nodes.make().seed(cloop)["link"], nodes.directory / "out.img"
    with reading_into_a_full_store(nodes, link) as (_, uri, _):
        tool("nbdcopy", uri, out)
    assert out.read_bytes() == image.read_bytes()


def test_reads_that_need_the_full_store_wait_for_room_and_say_so(
    nodes: Nodes, image: Path, cloop: Path
) -> None:
    """A seeder without HTTP: its pieces go through the store's files. No read fails."""
    seeder = nodes.make("[http]\nlisten = []\n")
    link, out = seeder.seed(cloop)["link"], nodes.directory / "out.img"
    with (
        reading_into_a_full_store(nodes, link) as (serving, uri, disk),
        started(["nbdcopy", uri, out]) as copying,
    ):
        said = read_until(serving, "the guest waits for room")
        assert copying.poll() is None
        disk.resize("64M")
        assert copying.wait(BOUND) == 0
    assert "No space left on device; free some space" in said
    assert out.read_bytes() == image.read_bytes()
