"""Files of a squashfs that mksquashfs made, read without a mount; and damaged ones."""

from __future__ import annotations

import os
import random
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.squashfs import Squashfs, SquashInode
from p2pcloop.formats.squashfs_blocks import DECODERS
from tests.formats.test_ext4 import TIME, make_tree
from tests.support.file_systems import numbers, read, reader, walk
from tests.support.programs import tool


def opened(data: bytes | bytearray) -> Squashfs:
    return Squashfs(reader(data), len(data))


def make(tree: Path, out: Path, *options: str) -> bytes:
    tool("mksquashfs", tree, out, "-quiet", "-no-progress", "-noappend", *options)
    return out.read_bytes()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squashfs") / "tree"
    folder.mkdir()
    make_tree(folder)
    text = b"".join(b"line %d of a text\n" % number for number in range(60_000))
    (folder / "text").write_bytes(text)
    (folder / "noise").write_bytes(random.Random(2).randbytes(300_001))
    os.mkfifo(folder / "pipe")
    for name in ("text", "noise", "pipe"):
        os.utime(folder / name, (TIME, TIME))
    return folder


OPTIONS = {
    "gzip": (),
    **{name: ("-comp", name) for name in ("xz", "lz4", "lzo", "zstd")},
    "plain": ("-noI", "-noD", "-noF"),
    "no fragments": ("-no-fragments", "-b", "4096"),
    "tails": ("-always-use-fragments", "-b", "1M", "-comp", "zstd"),
    "filters": ("-comp", "xz", "-Xbcj", "x86"),
}


@pytest.fixture(scope="module", params=OPTIONS)
def device(request: pytest.FixtureRequest, tree: Path) -> bytes:
    return make(tree, tree.with_name(f"{request.param}.img"), *OPTIONS[request.param])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("small") / "tree"
    (folder / "a").mkdir(parents=True)
    (folder / "a/file").write_bytes(b"text " * 50_000)
    (folder / "link").symlink_to("a/file")
    return make(folder, folder.with_name("small.img"), "-comp", "zstd", "-b", "64K")


def test_all_files_are_read_as_they_were_written(device: bytes, tree: Path) -> None:
    files = opened(device)
    found = dict(walk(files, files.inode(files.root)))
    wanted = {os.fsencode(path.relative_to(tree)): path for path in tree.rglob("*")}
    assert found.keys() == wanted.keys()
    for name, inode in found.items():
        facts = wanted[name].lstat()
        assert (inode.mode, inode.changed) == (facts.st_mode, TIME), name
        if stat.S_ISLNK(inode.mode):
            assert files.target(inode) == os.fsencode(wanted[name].readlink())
        if stat.S_ISREG(inode.mode):
            assert inode.size == facts.st_size
            assert read(device, files, inode) == wanted[name].read_bytes(), name
    assert found[b"twin"].number == found[b"small"].number


def test_parts_of_files(device: bytes, tree: Path) -> None:
    files = opened(device)
    names = numbers(files, files.inode(files.root))
    for name in ("sparse", "text", "noise"):
        inode, wanted = files.inode(names[name.encode()]), (tree / name).read_bytes()
        end = len(wanted)
        for offset, length in ((0, 1), (4095, 2), (131_000, 300), (end - 1, 9), (end, 5)):
            assert read(device, files, inode, offset, length) == wanted[offset : offset + length]
    sparse = files.inode(names[b"sparse"])
    holes = sum(size for size, place in files.runs(sparse, 0, sparse.size) if place is None)
    assert holes > sparse.size // 2


def test_a_block_is_decoded_once_for_reads_that_follow_each_other(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(tree, tree.with_name("counted.img"), "-b", "1M")
    decoded: list[int] = []
    zlib = DECODERS[1]

    def count(stored: bytes, most: int) -> bytes:
        decoded.append(most)
        return zlib(stored, most)

    monkeypatch.setitem(DECODERS, 1, count)
    files = opened(data)
    text = files.inode(numbers(files, files.inode(files.root))[b"text"])
    before = decoded.count(1 << 20)
    for offset in range(0, 1 << 20, 1 << 17):
        read(data, files, text, offset, 1 << 17)
    assert decoded.count(1 << 20) == before + 1


def test_what_is_missing_is_asked_for_at_once(tree: Path) -> None:
    """What raises in the middle leaves nothing behind: the same call succeeds later."""
    data = make(tree, tree.with_name("asked.img"), "-b", "4096", "-no-fragments")
    asked: list[int] = []

    class LackingError(Exception):
        """Bytes are not here yet."""

    def prepare(ranges: object) -> None:
        assert isinstance(ranges, list)
        asked.append(len(ranges))
        if len(asked) == 1:
            raise LackingError

    files = Squashfs(reader(data), len(data), prepare)
    noise = files.inode(numbers(files, files.inode(files.root))[b"noise"])
    with pytest.raises(LackingError):
        list(files.runs(noise, 0, 10 * 4096))
    assert read(data, files, noise, 0, 10 * 4096) == (tree / "noise").read_bytes()[: 10 * 4096]
    assert asked == [10, 10]


def test_what_is_not_read_is_told(small: bytes) -> None:
    for data in (b"", bytes(4096), small[:90]):
        with pytest.raises(FormatError, match="no superblock"):
            opened(data)
    for at, value, told in (
        (28, 3, "version 3.0"),
        (20, 2, "compressed by LZMA"),
        (22, 40, "impossible values"),
        (22, 15, "impossible values"),
    ):
        damaged = bytearray(small)
        struct.pack_into("<H", damaged, at, value)
        with pytest.raises(FormatError, match=told):
            opened(damaged)


def test_wrong_questions(small: bytes) -> None:
    files = opened(small)
    root = files.inode(files.root)
    link = files.inode(numbers(files, root)[b"link"])
    for question in (
        lambda: files.inode(0),
        lambda: files.inode(1 << 62),
        lambda: files.entries(link),
        lambda: files.target(root),
    ):
        with pytest.raises(FormatError):
            question()


@settings(max_examples=100)
@given(data=st.data())
def test_damage_is_told_or_does_no_harm(data: st.DataObject, tree: Path) -> None:
    """Whatever stands in the structures: an error of ours, or bytes of the device. Its structures
    are not compressed, so that what is changed is what is read."""
    place = tree.with_name("damaged.img")
    whole = place.read_bytes() if place.exists() else make(tree, place, "-noI", "-comp", "zstd")
    (inodes,) = struct.unpack_from("<Q", whole, 64)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.one_of(st.integers(0, 92), st.integers(inodes, len(damaged) - 4)))
        damaged[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    try:
        files = opened(damaged)
        for _, inode in walk_some(files):
            if stat.S_ISREG(inode.mode):
                read(damaged, files, inode, 0, 1 << 18)
                read(damaged, files, inode, max(0, inode.size - 1), 1)
            if stat.S_ISLNK(inode.mode):
                files.target(inode)
    except FormatError:
        return


def walk_some(files: Squashfs) -> list[tuple[bytes, SquashInode]]:
    """Some of what is there: directories of a damaged one may hold each other."""
    found: list[tuple[bytes, SquashInode]] = []
    folders = [files.inode(files.root)]
    while folders and len(found) < 60:
        for name, number, _ in files.entries(folders.pop())[0]:
            inode = files.inode(number)
            found.append((name, inode))
            if stat.S_ISDIR(inode.mode):
                folders.append(inode)
    return found
