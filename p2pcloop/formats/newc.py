"""The cpio archive format that the Linux kernel unpacks as its first root ("SVR4 newc").

Layout: kernel documentation, driver-api/early-userspace/buffer-format.rst. An entry is a header of
110 ASCII bytes, the name with a NUL, padding to 4 bytes, the content, padding to 4 bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

from p2pcloop.frozen import dataclass

MAX_CONTENT = (1 << 32) - 1
"""Bytes that one entry may hold: the size is 8 hexadecimal digits."""

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive; owned by root, all times zero.

    Attributes:
        name: path without a leading slash. A directory comes before the files in it.
        mode: file type and permissions as in `stat.st_mode`.
        content: the bytes of a regular file, the target of a symbolic link, empty otherwise.
        device: major and minor of a device node.
    """

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, permissions: int = 0o755) -> Entry:
    """An entry for a directory."""
    return Entry(name, stat.S_IFDIR | permissions)


def regular_file(name: str, content: bytes, permissions: int = 0o644) -> Entry:
    """An entry for a regular file."""
    return Entry(name, stat.S_IFREG | permissions, content)


def symlink(name: str, target: str) -> Entry:
    """An entry for a symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def char_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """An entry for a character device node."""
    return Entry(name, stat.S_IFCHR | permissions, device=(major, minor))


def build_archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive of `entries` in their order, trailer included; the same input always
    gives the same bytes.

    Raises:
        ValueError: a name is empty, absolute, holds a NUL or is the trailer's, or content is
            larger than `MAX_CONTENT`.
    """
    parts: list[bytes] = []
    for number, entry in enumerate(entries, start=1):
        _check(entry)
        parts += _encode(number, entry)
    parts += _encode(0, Entry(_TRAILER, 0))
    return b"".join(parts)


def _check(entry: Entry) -> None:
    name = entry.name
    if not name or name.startswith("/") or "\0" in name or name == _TRAILER:
        raise ValueError(f"not a name for a cpio entry: {name!r}")
    if len(entry.content) > MAX_CONTENT:
        raise ValueError(f"{name}: {len(entry.content)} bytes do not fit in a cpio entry")


def _encode(number: int, entry: Entry) -> tuple[bytes, ...]:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (
        *(number, entry.mode, 0, 0, links, 0, len(entry.content)),
        *(0, 0, major, minor, len(name), 0),
    )
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    padding = bytes(-len(header + name) % 4), bytes(-len(entry.content) % 4)
    return header, name, padding[0], entry.content, padding[1]
