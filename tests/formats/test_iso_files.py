"""Files of CDs that genisoimage made, read without a mount; and damaged ones."""

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
from p2pcloop.formats.iso9660 import LinkTarget
from p2pcloop.formats.iso_files import IsoFiles
from tests.support.cds import join_files, make_iso, make_iso_of
from tests.support.file_systems import entries, numbers, read, reader, walk
from tests.support.programs import tool

TIME = 1_600_000_000


def opened(data: bytes | bytearray) -> IsoFiles:
    return IsoFiles(reader(data), len(data))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long names, links, modes, and directories too deep for a CD without Rock Ridge."""
    folder = tmp_path_factory.mktemp("iso") / "tree"
    deep = folder.joinpath(*(f"level{number}" for number in range(12)))
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("deep down\n")
    (folder / "Program with a long name.tar.gz").write_bytes(random.Random(1).randbytes(100_000))
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    (folder / "empty").write_bytes(b"")
    (folder / ("n" * 240)).write_text("long")
    (folder / "short").symlink_to("run")
    (folder / "long").symlink_to("/".join(["some where"] * 12))
    (folder / "up").symlink_to("../../level0/run")
    many = folder / "many"
    many.mkdir()
    for number in range(300):
        (many / f"file {number}").write_text(str(number))
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (TIME, TIME), follow_symlinks=False)
    return folder


def test_rock_ridge(tree: Path, tmp_path: Path) -> None:
    data = make_iso_of(tree, tmp_path / "cd.iso", "-R").read_bytes()
    files = opened(data)
    found = dict(walk(files, files.inode(files.root)))
    found.pop(b"rr_moved", None)
    wanted = {os.fsencode(path.relative_to(tree)): path for path in tree.rglob("*")}
    assert found.keys() == wanted.keys()
    for name, inode in found.items():
        facts = wanted[name].lstat()
        if stat.S_ISLNK(inode.mode):
            assert files.target(inode) == os.fsencode(wanted[name].readlink())
        if stat.S_ISREG(inode.mode):
            assert (inode.mode, inode.size, inode.changed) == (facts.st_mode, facts.st_size, TIME)
            assert read(data, files, inode) == wanted[name].read_bytes()
    program = found[b"Program with a long name.tar.gz"]
    assert (
        read(data, files, program, 5000)
        == (tree / os.fsdecode(b"Program with a long name.tar.gz")).read_bytes()[5000:]
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [(("-J",), "Some name.text"), ((), "some_nam.tex"), (("-r",), "Some name.text")],
)
def test_names_of_each_kind(tmp_path: Path, options: tuple[str, ...], name: str) -> None:
    data = make_iso(tmp_path / "cd.iso", {"Some name.text": b"content"}, *options).read_bytes()
    files = opened(data)
    [(told, number, _)] = entries(files, files.inode(files.root))
    assert told == name.encode()
    assert read(data, files, files.inode(number)) == b"content"


def test_a_file_of_two_extents(tmp_path: Path) -> None:
    path = make_iso(tmp_path / "cd.iso", {"a": b"1" * 2048, "b": b"2" * 100, "c": b"3"})
    data = bytearray(path.read_bytes())
    join_files(data, b"A.;1", b"B.;1")
    files = opened(data)
    found = numbers(files, files.inode(files.root))
    assert sorted(found) == [b"a", b"c"]
    inode = files.inode(found[b"a"])
    assert read(data, files, inode) == b"1" * 2048 + b"2" * 100
    assert read(data, files, inode, 2047) == b"1" + b"2" * 100


def test_what_zisofs_compressed_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "file").write_bytes(bytes(100_000))
    out = tmp_path / "cd.iso"
    tool("xorriso", "-outdev", out, "-map", folder, "/", "-set_filter", "--zisofs", "/file", "--")
    data = out.read_bytes()
    files = opened(data)
    inode = files.inode(numbers(files, files.inode(files.root))[b"file"])
    with pytest.raises(FormatError, match="compressed by zisofs"):
        read(data, files, inode)


def test_what_is_no_cd() -> None:
    for data in (b"", bytes(100_000)):
        with pytest.raises(FormatError, match="no volume descriptor"):
            opened(data)


@settings(max_examples=60)
@given(data=st.data())
def test_damage_is_told_or_does_no_harm(data: st.DataObject, small: bytes) -> None:
    damaged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(32768, len(damaged) - 4))
        damaged[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    try:
        files = opened(damaged)
        pending, seen = [files.root], 0
        while pending and seen < 100:
            seen += 1
            try:
                inode = files.inode(pending.pop())
                if stat.S_ISDIR(inode.mode):
                    pending += [entry.number for entry in entries(files, inode)]
                elif stat.S_ISLNK(inode.mode):
                    files.target(inode)
                else:
                    assert sum(size for size, _ in files.runs(inode, 0, 1 << 20)) <= 1 << 20
            except FormatError:
                pass
    except FormatError:
        pass


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("small") / "tree"
    (folder / "some").mkdir(parents=True)
    (folder / "some/file").write_text("content")
    (folder / "link").symlink_to("some/file")
    return make_iso_of(folder, folder.with_name("cd.iso"), "-R").read_bytes()


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A CD with a name that goes on in a continuation area, and one that does not."""
    folder = tmp_path_factory.mktemp("continued") / "tree"
    folder.mkdir()
    (folder / ("n" * 240)).write_text("long")
    (folder / "z").write_text("last")
    return make_iso_of(folder, folder.with_name("cd.iso"), "-R").read_bytes()


def continue_in(data: bytes, area: bytes) -> bytes:
    """The CD with another continuation area of the long name."""
    at = data.index(b"CE\x1c\x01", data.index(b"nnnn"))
    block = -(-len(data) // 2048)
    told = b"".join(struct.pack("<I", n) + struct.pack(">I", n) for n in (block, 0, len(area)))
    return (data[: at + 4] + told + data[at + 28 :]).ljust(block * 2048, b"\0") + area


def test_a_long_name_goes_on_elsewhere(continued: bytes) -> None:
    files = opened(continued)
    assert sorted(numbers(files, files.inode(files.root))) == [b"n" * 240, b"z"]


def test_a_name_that_no_system_takes_hides_no_other(continued: bytes) -> None:
    field = b"NM\xff\x01\x00" + b"m" * 250
    files = opened(continue_in(continued, field * 100))
    assert list(numbers(files, files.inode(files.root))) == [b"z"]


def test_continuation_areas_have_a_bound(continued: bytes) -> None:
    """Each is read again by its own CE field: 32 times 64 KiB for each record of a directory."""
    block = -(-len(continued) // 2048)
    again = b"".join(struct.pack("<I", n) + struct.pack(">I", n) for n in (block, 0, 1 << 16))
    area = b"CE\x1c\x01" + again + b"XX\x04\x01" * (((1 << 16) - 28) // 4)
    taken = 0
    data = continue_in(continued, area)

    def take(offset: int, length: int) -> bytes:
        nonlocal taken
        taken += length
        return data[offset : offset + length]

    files = IsoFiles(take, len(data))
    root = files.inode(files.root)
    with pytest.raises(FormatError, match="too many continuation areas"):
        files.entries(root)
    assert taken < 1 << 20


def test_a_long_target_is_malformed() -> None:
    target = LinkTarget()
    target.add(b"\0" + b"\0\x04some" * 40)
    assert target.raw() == b"/".join([b"some"] * 40)
    for _ in range(1000):
        target.add(b"\0" + b"\0\x04some" * 40)
    assert target.raw() == b""
    assert not target._parts or len(target._parts) < 1000


def test_directories_are_read_in_parts(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_iso_of(tree, tmp_path / "cd.iso", "-R").read_bytes()
    files = opened(data)
    many = files.inode(numbers(files, files.inode(files.root))[b"many"])
    whole = entries(files, many)
    for size in (2048, 5000, 1 << 20):
        monkeypatch.setattr("p2pcloop.formats.iso_files._PART", size)
        assert entries(files, many) == whole
        assert len(whole) == 300
