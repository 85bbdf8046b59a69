"""The writable layer of a union file system, as the tar file that a guest unpacks."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import StorageError, UsageError
from p2pcloopd.guest.unseen.union_tree import UnionTree, layer_of
from tests.support.programs import tool

NAMES = st.binary(min_size=1, max_size=200).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)


def packed(top: Path) -> tuple[bytes, list[str]]:
    left_out: list[str] = []
    return b"".join(UnionTree(top, left_out.append).pack()), left_out


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        return {member.name: member for member in tar}


def unpacked_by_gnu_tar(data: bytes, out: Path) -> None:
    out.mkdir()
    (out.parent / "layer.tar").write_bytes(data)
    tool("tar", "--xattrs", "--xattrs-include=user.*", "-C", out, "-xpf", out.parent / "layer.tar")


def test_gnu_tar_makes_the_same_files_of_it(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "etc" / ("d" * 120)).mkdir(parents=True)
    file = top / "etc" / ("d" * 120) / os.fsdecode(b"no\xfftext\nin a line")
    file.write_bytes(b"content" * 1000)
    file.chmod(0o4751)
    os.setxattr(file, "user.note", b"bytes\xff\0\n")
    (top / "etc/same").hardlink_to(file)
    (top / "loop").symlink_to("loop")
    (top / "away").symlink_to("/etc/passwd")
    os.mkfifo(top / "pipe")
    data, left_out = packed(top)
    assert left_out == []
    out = tmp_path / "out"
    unpacked_by_gnu_tar(data, out)
    there = out / file.relative_to(top)
    assert there.read_bytes() == file.read_bytes()
    assert stat.S_IMODE(there.stat().st_mode) == 0o4751
    assert os.getxattr(there, "user.note") == b"bytes\xff\0\n"
    assert (out / "etc/same").stat().st_ino == there.stat().st_ino
    assert [str((out / name).readlink()) for name in ("loop", "away")] == ["loop", "/etc/passwd"]
    assert stat.S_ISFIFO((out / "pipe").stat().st_mode)


@given(st.dictionaries(NAMES, st.binary(max_size=2000), min_size=1, max_size=4))
def test_every_name_and_content_comes_over(files: dict[bytes, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / os.fsdecode(name)).write_bytes(content)
        data, _ = packed(Path(folder))
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        found = {}
        for member in tar:
            with tar.extractfile(member) as file:  # type: ignore[union-attr]  # it is a file
                found[os.fsencode(member.name)] = file.read()
    assert found == files


@pytest.mark.parametrize("name", ["user.overlay.opaque", "user.fuseoverlayfs.opaque"])
def test_directories_that_hide_get_the_mark_of_a_mount_by_root(tmp_path: Path, name: str) -> None:
    (tmp_path / "hides").mkdir()
    os.setxattr(tmp_path / "hides", name, b"y")
    (tmp_path / "shows").mkdir()
    os.setxattr(tmp_path / "shows", name, b"x")
    os.setxattr(tmp_path / "shows", "user.overlay.origin", b"elsewhere")
    found = members(packed(tmp_path)[0])
    assert found["hides"].pax_headers == {"SCHILY.xattr.trusted.overlay.opaque": "y"}
    assert found["shows"].pax_headers == {}


def test_a_file_that_stands_for_a_deletion_is_a_device(tmp_path: Path) -> None:
    """As overlayfs notes it where no device node can be made (xwhiteouts)."""
    (tmp_path / "gone").touch()
    os.setxattr(tmp_path / "gone", "user.overlay.whiteout", b"y")
    tree = UnionTree(tmp_path, lambda _what: None)
    gone = members(b"".join(tree.pack()))["gone"]
    assert (gone.type, gone.devmajor, gone.devminor) == (tarfile.CHRTYPE, 0, 0)
    assert tree.deletions == 1


@pytest.mark.parametrize("name", ["redirect", "metacopy"])
def test_what_lies_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "moved").mkdir()
    os.setxattr(tmp_path / "moved", f"user.overlay.{name}", b"/before")
    with pytest.raises(UsageError, match=f"/moved was changed with {name}"):
        packed(tmp_path)


def test_sockets_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    data, left_out = packed(tmp_path)
    assert members(data) == {}
    assert left_out == ["socket: it is a socket"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/file").write_bytes(b"1")
    tree = UnionTree(tmp_path, lambda _what: None)
    pieces = tree.pack()
    for _header in range(2):  # of the directory, and of the file
        next(pieces)
    (tmp_path / "etc/file").unlink()
    (tmp_path / "etc/file").symlink_to("/etc/passwd")
    with pytest.raises(StorageError, match="etc/file"):
        list(pieces)


def test_the_layer_of_an_overlayfs_is_found(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    assert layer_of(tmp_path) == tmp_path
    (tmp_path / "work").mkdir()
    assert layer_of(tmp_path) == tmp_path / "upper"
