"""Read-only file systems of a directory's content, as the tools of the field make them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from p2pcloop.formats.file_tree import Entry, FileTree, Inode, Read, content
from tests.support.programs import tool

READ_ONLY = ("squashfs", "iso9660", "erofs")

Kind = TypeVar("Kind", bound=Inode)


def entries(files: FileTree[Kind], folder: Kind) -> list[Entry]:
    """All entries of a directory, from its parts."""
    found, start = files.entries(folder)
    while start is not None:
        more, start = files.entries(folder, start)
        found += more
    return found


def numbers(files: FileTree[Kind], folder: Kind) -> dict[bytes, int]:
    """The inodes of a directory by name."""
    return {entry.name: entry.number for entry in entries(files, folder)}


def walk(files: FileTree[Kind], folder: Kind, path: bytes = b"") -> Iterator[tuple[bytes, Kind]]:
    """All that is below a directory, by path."""
    for name, number, kind in entries(files, folder):
        inode = files.inode(number)
        assert kind == stat.S_IFMT(inode.mode)
        yield path + name, inode
        if stat.S_ISDIR(inode.mode):
            yield from walk(files, inode, path + name + b"/")


def reader(data: bytes | bytearray) -> Read:
    """Reads a device in memory."""
    return lambda offset, length: bytes(data[offset : offset + length])


def read(
    data: bytes | bytearray,
    files: FileTree[Kind],
    inode: Kind,
    offset: int = 0,
    length: int | None = None,
) -> bytes:
    """A part of a file of a device in memory; as many bytes as the file has, if not told."""
    runs = files.runs(inode, offset, inode.size if length is None else length)
    return content(runs, reader(data))


def make_read_only(kind: str, tree: Path, out: Path) -> None:
    """Write a file system of this type, all of it owned by root, with the files below `tree`."""
    match kind:
        case "squashfs":
            tool("mksquashfs", tree, out, "-all-root", "-quiet", "-no-progress")
        case "iso9660":
            tool("genisoimage", "-quiet", "-r", "-o", out, tree)
        case "erofs":
            tool("mkfs.erofs", "--all-root", "-zlz4hc", out, tree)


def make_writable(kind: str, tree: Path, out: Path) -> None:
    """Write a btrfs or an xfs of 320 MiB, which takes room only for the files below `tree`."""
    with out.open("wb") as file:
        file.truncate(320 << 20)
    match kind:
        case "btrfs":
            tool("mkfs.btrfs", "-q", "--rootdir", tree, out)
        case "xfs":
            prototype = out.with_name(f"{out.name}.proto")
            prototype.write_text("\n".join(["-", "0 0", *_prototype(tree), "$", ""]))
            tool("mkfs.xfs", "-q", "-p", prototype, out)


def _prototype(path: Path, name: str = "") -> list[str]:
    """A file or directory in the language of mkfs.xfs(8), option -p; all of it root's."""
    mode = f"{path.lstat().st_mode & 0o777:03o} 0 0"
    if path.is_symlink():
        return [f"{name} l--777 0 0 {path.readlink()}"]
    if path.is_dir():
        inside = [
            line for entry in sorted(path.iterdir()) for line in _prototype(entry, entry.name)
        ]
        return [f"{name} d--{mode}", *inside, *(["$"] if name else [])]
    return [f"{name} ---{mode} {path}"]
