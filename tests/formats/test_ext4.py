"""Files of ext2, ext3 and ext4 that mke2fs made, read without a mount; and damaged ones."""

from __future__ import annotations

import os
import random
import stat
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.ext4 import Ext4
from p2pcloop.formats.file_tree import content
from p2pcloop.formats.file_tree import places as places_of
from tests.support.file_systems import entries, numbers, read, reader, walk
from tests.support.programs import tool

KINDS = ("ext2", "ext3", "ext4")
TIME = 1_600_000_000


def make_tree(folder: Path) -> None:
    """Files of all kinds of maps: holes, many blocks, many names, links of both kinds."""
    some = random.Random(1)
    (folder / "empty").write_bytes(b"")
    (folder / "small").write_text("small\n")
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o755)
    (folder / "large").write_bytes(some.randbytes(1 << 20))
    with (folder / "sparse").open("wb") as file:
        for at in (0, 1 << 20, (1 << 20) + 8192, 9 << 20):
            file.seek(at)
            file.write(some.randbytes(5000))
        file.truncate((10 << 20) + 1)
    (folder / "short").symlink_to("small")
    (folder / "long").symlink_to("deep/" * 40 + "small")
    (folder / "twin").hardlink_to(folder / "small")
    (folder / os.fsdecode(b"no-\xfftext")).write_text("x")
    many = folder / "many"
    many.mkdir()
    for number in range(600):  # enough for an index of the directory
        (many / f"{number}-{'n' * (number % 100)}").write_text(str(number))
    deep = folder / "a/b/c"
    deep.mkdir(parents=True)
    (deep / "d").write_text("deep")
    for path in folder.rglob("*"):
        os.utime(path, (TIME, TIME), follow_symlinks=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ext4") / "tree"
    folder.mkdir()
    make_tree(folder)
    return folder


@pytest.fixture(scope="module", params=[(kind, size) for kind in KINDS for size in (1024, 4096)])
def device(request: pytest.FixtureRequest, tree: Path) -> bytes:
    kind, block = request.param
    path = tree.with_name(f"{kind}-{block}.img")
    path.touch()
    os.truncate(path, 16 << 20)
    tool("mke2fs", "-q", "-F", "-t", kind, "-b", str(block), "-d", tree, path)
    return path.read_bytes()


def opened(data: bytes | bytearray) -> Ext4:
    return Ext4(reader(data), len(data))


def test_all_files_are_read_as_they_were_written(device: bytes, tree: Path) -> None:
    files = opened(device)
    found = dict(walk(files, files.inode(files.root)))
    lost = found.pop(b"lost+found")
    assert stat.S_ISDIR(lost.mode)
    wanted = {os.fsencode(path.relative_to(tree)): path for path in tree.rglob("*")}
    assert found.keys() == wanted.keys()
    for name, inode in found.items():
        facts = wanted[name].lstat()
        assert (inode.mode, inode.changed) == (facts.st_mode, TIME), name
        if stat.S_ISLNK(inode.mode):
            assert files.target(inode) == os.fsencode(wanted[name].readlink())
        if stat.S_ISREG(inode.mode):
            assert (inode.size, inode.links) == (facts.st_size, facts.st_nlink)
            assert read(device, files, inode, 0, inode.size) == wanted[name].read_bytes(), name
    assert found[b"twin"].number == found[b"small"].number


def test_parts_of_files(device: bytes, tree: Path) -> None:
    files = opened(device)
    number = numbers(files, files.inode(files.root))[b"sparse"]
    inode, wanted = files.inode(number), (tree / "sparse").read_bytes()
    for offset, length in ((0, 1), (4999, 2), (1 << 20, 20000), ((9 << 20) - 1, 3), (10 << 20, 9)):
        assert read(device, files, inode, offset, length) == wanted[offset : offset + length]
    assert list(files.runs(inode, len(wanted), 1)) == []
    holes = sum(size for size, place in files.runs(inode, 0, len(wanted)) if place is None)
    assert holes > len(wanted) // 2


def test_a_journal_that_must_be_replayed_is_refused(device: bytes) -> None:
    data = bytearray(device)
    (flags,) = struct.unpack_from("<I", data, 1024 + 96)
    struct.pack_into("<I", data, 1024 + 96, flags | 0x4)
    with pytest.raises(FormatError, match="journal") as caught:
        opened(data)
    assert caught.value.hint is not None
    struct.pack_into("<I", data, 1024 + 96, flags | 0x10000 | 0x10 | 1 << 31)
    with pytest.raises(FormatError, match="uses meta_bg, encrypt, 0x80000000"):
        opened(data)


def test_what_is_no_ext4(device: bytes) -> None:
    for data in (b"", bytes(4096), device[:1100]):
        with pytest.raises(FormatError, match="no superblock"):
            opened(data)
    damaged = bytearray(device)
    struct.pack_into("<I", damaged, 1024 + 24, 40)
    with pytest.raises(FormatError, match="impossible values"):
        opened(damaged)


def test_wrong_questions(device: bytes) -> None:
    files = opened(device)
    root = files.inode(files.root)
    small = files.inode(numbers(files, root)[b"small"])
    for question in (
        lambda: files.inode(0),
        lambda: files.inode(1 << 31),
        lambda: files.entries(small),
        lambda: files.target(small),
        lambda: files.target(root),
    ):
        with pytest.raises(FormatError):
            question()


@settings(max_examples=60)
@given(data=st.data())
def test_damage_is_told_or_does_no_harm(device: bytes, data: st.DataObject) -> None:
    """Whatever stands in the structures: an error of ours, or bytes of the device."""
    damaged = bytearray(device[: 1 << 20])  # most inodes lie there, and the first directories
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(1024, len(damaged) - 4))
        damaged[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))

    def take(offset: int, length: int) -> bytes:
        end = offset + length
        return bytes(damaged[offset:end]) + device[max(offset, len(damaged)) : end]

    try:
        files = Ext4(take, len(device))
    except FormatError:
        return
    for number in range(1, 40):
        with suppress(FormatError):
            inode = files.inode(number)
            if stat.S_ISDIR(inode.mode):
                entries(files, inode)
            elif stat.S_ISLNK(inode.mode):
                files.target(inode)
            else:
                content(files.runs(inode, 0, min(inode.size, 1 << 18)), take)


def test_directories_are_read_in_parts(device: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a part is read from is told before it is read: so it can be fetched at once."""
    prepared: list[tuple[int, int]] = []
    late: list[int] = []

    def take(offset: int, length: int) -> bytes:
        if offset in places and not any(at <= offset < at + n for at, n in prepared):
            late.append(offset)
        return device[offset : offset + length]

    places: set[int] = set()
    files = Ext4(take, len(device), prepared.extend)
    many = files.inode(numbers(files, files.inode(files.root))[b"many"])
    places = {place for place, _ in places_of(files.runs(many, 0, many.size))}
    prepared.clear()
    whole = entries(files, many)
    assert len(whole) == 600
    assert (bool(places), late) == (True, [])
    monkeypatch.setattr("p2pcloop.formats.ext4._PART", 4096)
    assert entries(files, many) == whole


def test_a_directory_without_kinds(device: bytes) -> None:
    data = bytearray(device)
    (flags,) = struct.unpack_from("<I", data, 1024 + 96)
    struct.pack_into("<I", data, 1024 + 96, flags & ~0x2)
    files = opened(data)
    assert {entry.kind for entry in entries(files, files.inode(files.root))} == {0}


def test_a_directory_that_is_too_long(device: bytes) -> None:
    files = opened(device)
    root = replace(files.inode(files.root), size=(16 << 20) + 1)
    with pytest.raises(FormatError, match="longer than"):
        files.entries(root)
