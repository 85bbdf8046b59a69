"""Trees of files on their way into guests and out of hostile ones."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError, MismatchError
from p2pcloopd.guest.channel.tree import Unpacker, directories_below, pack_tree, read_file

_END = bytes(1024)


def member(
    name: str, content: bytes = b"", *, kind: bytes = b"0", link: str = "", mode: int = 0o644
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(content)
    head = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return head + content + bytes(-len(content) % 512)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").write_bytes(b"precious")
    (tmp_path / "top").mkdir(mode=0o755)
    return tmp_path / "top"


@pytest.fixture
def left_out() -> list[str]:
    return []


def unpack(top: Path, left_out: list[str], *parts: bytes, is_new: bool = True) -> None:
    unpacker = Unpacker(top, left_out.append, is_new=is_new)
    try:
        for part in parts:
            unpacker.feed(part)
        unpacker.finish()
    finally:
        unpacker.close()


def files(top: Path) -> Iterator[str]:
    return (str(path.relative_to(top)) for path in sorted(top.rglob("*")))


def test_directories_are_listed_and_links_are_not(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / os.fsdecode(b"no\xfftext")).mkdir()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "file").touch()
    listed = sorted(map(os.fsencode, directories_below(tmp_path)))
    assert listed == [b"a", b"a/b", b"no\xfftext"]


def test_a_tree_comes_back_as_it_was(tmp_path: Path, top: Path, left_out: list[str]) -> None:
    tree = tmp_path / "tree"
    deep = tree / "with space" / ("long" * 40) / "new\nline"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"content")
    (tree / "private").write_bytes(b"x" * 1000)
    (tree / "private").chmod(0o600)
    (tree / "with space").chmod(0o500)
    (tree / "absolute").symlink_to("/etc/passwd")
    (tree / "dangling").symlink_to("../../nowhere")
    (tree / os.fsdecode(b"\xff\xfe")).write_bytes(b"")
    os.mkfifo(tree / "pipe")
    os.utime(tree / "private", (1_000_000_000, 1_000_000_000))
    tree.chmod(0o711)
    mode = top.stat().st_mode
    unpack(top, left_out, *pack_tree(tree, left_out.append))
    assert top.stat().st_mode == mode
    assert list(files(top)) == [name for name in files(tree) if name != "pipe"]
    assert left_out == [f"{tree / 'pipe'}: it is no file, directory or link"]
    assert (top / deep.relative_to(tree) / "file").read_bytes() == b"content"
    assert stat.S_IMODE((top / "with space").stat().st_mode) == 0o500
    private = (top / "private").stat()
    assert (stat.S_IMODE(private.st_mode), private.st_mtime) == (0o600, 1_000_000_000)
    assert (top / "absolute").readlink() == Path("/etc/passwd")
    assert (top / "dangling").readlink() == Path("../../nowhere")


LINK_OUT = member("way", kind=b"2", link="../outside")
HOSTILE = {
    "up": [member("../outside/precious", b"bad")],
    "up behind": [member("a/../../outside/precious", b"bad")],
    "absolute": [member("/etc/p2pcloop-test", b"bad")],
    "through a link": [LINK_OUT, member("way/precious", b"bad")],
    "a directory through a link": [LINK_OUT, member("way/new", kind=b"5")],
    "the link becomes a directory": [LINK_OUT, member("way", kind=b"5", mode=0o777)],
    "through two links": [
        member("a", kind=b"2", link="."),
        member("a/b", kind=b"2", link="../outside"),
        member("b/precious", b"bad"),
    ],
    "a hard link out": [member("way", kind=b"1", link="../outside/precious")],
    "a hard link to a link": [LINK_OUT, member("h", kind=b"1", link="way/precious")],
    "a hard link to what was there": [member("h", kind=b"1", link="mine")],
    "the top": [member(".", b"bad")],
    "a thousand directories deep": [member("d/" * 1000 + "file", b"bad")],
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_nothing_is_written_outside(top: Path, left_out: list[str], parts: list[bytes]) -> None:
    (top / "mine").write_bytes(b"mine")
    with pytest.raises((FormatError, OSError)):
        unpack(top, left_out, *parts, _END)
    outside = top.parent / "outside"
    assert (outside / "precious").read_bytes() == b"precious"
    assert list(files(outside)) == ["precious"]
    assert outside.stat().st_mode & 0o777 == 0o755
    assert (top / "mine").read_bytes() == b"mine"
    assert (outside / "precious").stat().st_nlink == 1


def test_a_link_is_replaced_and_not_followed(top: Path, left_out: list[str]) -> None:
    (top / "mine").symlink_to("../outside/precious")
    unpack(
        top,
        left_out,
        *(LINK_OUT, member("way", b"a file now"), member("mine", b"theirs"), _END),
    )
    assert (top / "way").read_bytes() == b"a file now"
    assert (top / "mine").read_bytes() == b"theirs"
    assert (top.parent / "outside/precious").read_bytes() == b"precious"


def test_set_id_bits_and_devices_do_not_come(top: Path, left_out: list[str]) -> None:
    device = member("null", kind=b"3")
    pipe = member("pipe", kind=b"6")
    unpack(top, left_out, member("su", b"#!", mode=0o6755), device, pipe, _END)
    assert stat.S_IMODE((top / "su").stat().st_mode) == 0o755
    assert left_out == ["null: it is a device or a pipe", "pipe: it is a device or a pipe"]
    assert list(files(top)) == ["su"]


def test_hard_links_stay_links(top: Path, left_out: list[str]) -> None:
    unpack(top, left_out, member("d/a", b"x"), member("b", kind=b"1", link="./d/a"), _END)
    assert (top / "b").samefile(top / "d/a")


def test_directories_that_are_there_stay_as_they_are(top: Path, left_out: list[str]) -> None:
    (top / "kept").mkdir(mode=0o711)
    parts = [member("./", kind=b"5", mode=0o777), member("kept", kind=b"5", mode=0o777)]
    unpack(top, left_out, *parts, member("kept/new", kind=b"5", mode=0o770), _END, is_new=False)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (top, top / "kept", top / "kept/new")]
    assert modes == [0o755, 0o711, 0o770]


def test_a_directory_is_not_replaced_by_a_file(top: Path, left_out: list[str]) -> None:
    (top / "kept").mkdir()
    with pytest.raises(OSError, match="directory"):
        unpack(top, left_out, member("kept", b"x"), _END)


@pytest.mark.parametrize("data", [b"", member("a", b"x" * 600)[:700], member("a", b"x")])
def test_half_a_tar_file_is_told(top: Path, left_out: list[str], data: bytes) -> None:
    with pytest.raises(FormatError):
        unpack(top, left_out, data)


def test_a_file_that_shrinks_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with pytest.raises(MismatchError, match="shorter"):
        list(read_file(tmp_path / "file", 4))
