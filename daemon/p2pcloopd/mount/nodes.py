"""What a mounted tree is made of: directories, files and symbolic links that are only read."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from p2pcloop.image.api import Missing
from p2pcloop.protocol.fuse import Attributes, DirectoryEntry

FOREVER = 24 * 3600
"""Seconds that the kernel may keep what never changes."""

SOON = 1
"""Seconds that the kernel may keep what another program may change."""

Identity = tuple[str | bytes | int, ...]


class Opened(Protocol):
    """A file that is open."""

    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill `view` with bytes from `offset` on; return how many: fewer only at the file's end.

        Raises:
            Missing: bytes are not here; `supply` fetches them, then the call is made again.
            P2pcloopError: they do not exist.
        """

    async def supply(self, missing: Missing) -> None:
        """Return when the ranges are here."""

    def read_ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Prepare for reads of these ranges (offset, length), which follow at once."""

    def seek(self, offset: int, whence: int) -> int:
        """Return the next data (SEEK_DATA) or hole (SEEK_HOLE) from `offset` on.

        Raises:
            OSError: ENXIO, as of lseek(2).
        """

    def close(self) -> None:
        """Nothing more is read."""


def inode_number(identity: Identity) -> int:
    """Return the number of the inode that a node of this identity has."""
    digest = blake2b(repr(identity).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") | 2  # never 0 or 1


def folder_entry(name: bytes, identity: Identity) -> DirectoryEntry:
    """An entry that names a directory of this identity, which need not be made for that."""
    return DirectoryEntry(name, inode_number(identity), stat.S_IFDIR | 0o555)


class Node:
    """A file, a directory or a link.

    Attributes:
        identity: tells it from all others in the tree; two names of one file have one identity.
        seconds: how long the kernel may keep its attributes, and the names in a directory.
    """

    kind = 0
    permissions = 0o444

    def __init__(self, identity: Identity, *, changed: int, size: int = 0, seconds: int) -> None:
        self.identity = identity
        self.seconds = seconds
        self._changed = changed
        self._size = size

    @property
    def mode(self) -> int:
        """Kind and permissions, as of stat(2)."""
        return self.kind | self.permissions

    @property
    def number(self) -> int:
        """The number of its inode, the same at each mount."""
        return inode_number(self.identity)

    def entry(self, name: bytes) -> DirectoryEntry:
        """An entry of a directory that names it."""
        return DirectoryEntry(name, self.number, self.mode)

    def attributes(self) -> Attributes:
        """Its attributes. It belongs to the user who mounted it."""
        links = 2 if self.kind == stat.S_IFDIR else 1
        return Attributes(
            *(self.number, self.mode, self._size, self._changed, os.getuid(), os.getgid(), links)
        )


class Directory(Node):
    """A directory."""

    kind = stat.S_IFDIR
    permissions = 0o555

    async def find(self, name: bytes) -> Node | None:
        """Return what has a name in it, or None.

        Raises:
            P2pcloopError: it cannot be told.
        """
        raise NotImplementedError

    async def entries(self) -> Sequence[DirectoryEntry]:
        """Return its entries, without `.` and `..`.

        Raises:
            P2pcloopError: they cannot be told.
        """
        raise NotImplementedError


class File(Node):
    """A file."""

    kind = stat.S_IFREG

    async def open(self) -> Opened:
        """Open it.

        Raises:
            P2pcloopError: its content cannot be had.
        """
        raise NotImplementedError


class Link(Node):
    """A symbolic link."""

    kind = stat.S_IFLNK
    permissions = 0o777

    async def target(self) -> bytes:
        """Return where it leads.

        Raises:
            P2pcloopError: that cannot be told.
        """
        raise NotImplementedError


class Text(File):
    """A file whose content is in memory."""

    def __init__(self, identity: Identity, content: bytes, *, changed: int, seconds: int) -> None:
        super().__init__(identity, changed=changed, size=len(content), seconds=seconds)
        self._content = content

    async def open(self) -> Opened:
        """See `File.open`."""
        return _OpenText(self._content)


class _OpenText:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read_into(self, offset: int, view: memoryview) -> int:
        part = self._content[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)

    async def supply(self, missing: Missing) -> None:
        raise AssertionError(f"text in memory cannot lack anything, yet: {missing}")

    def read_ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing is to be prepared."""

    def seek(self, offset: int, whence: int) -> int:
        return seek_data(offset, whence, len(self._content))

    def close(self) -> None:
        """Nothing is to be closed."""


def seek_data(offset: int, whence: int, size: int) -> int:
    """`Opened.seek` of a file without holes."""
    if offset >= size:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return size if whence == os.SEEK_HOLE else offset
