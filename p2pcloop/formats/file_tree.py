"""File systems whose files are read from the device, without a mount.

A reader of one is plain code. The function by which it reads the device may raise an exception of
its own (bytes that are not here yet); nothing is kept of a call that ended so. Content comes from
strangers: each number is checked before it is used, and what is read for one call is bounded. A
directory is read in parts, so that a long one stops no other reader of the caller.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from p2pcloop.errors import FormatError
from p2pcloop.words import tr

MAX_LINK = 4096
"""Bytes of a symbolic link's target, as of PATH_MAX."""

MAX_NAME = 255
"""Bytes of a name, as of NAME_MAX."""

MAX_ENTRIES = 1 << 20
"""Names in a directory."""

MAX_DIRECTORY = 16 << 20
"""Bytes of a directory."""

AGAIN = tr("ask the publisher whether the image is whole")
"""The hint where an image is damaged."""

Read = Callable[[int, int], bytes]
"""Returns bytes of the device: offset, length. It may raise what the caller catches."""

Prepare = Callable[[Sequence[tuple[int, int]]], None]
"""Called with ranges of the device that are read next, one by one: so what is not here can be
fetched at once. It may raise what the caller catches."""

Run = tuple[int, int | memoryview | None]
"""Bytes of a file that lie together: their number, and where in the device; None for zeros; the
bytes themselves where the file system compressed them."""


@dataclass(frozen=True, slots=True)
class Inode:
    """A file, directory or link.

    Attributes:
        number: tells it from others of its file system.
        mode: kind and permissions, as of stat(2).
        size: bytes.
        changed: of its content, in seconds since 1970.
    """

    number: int
    mode: int
    size: int
    changed: int


def check_directory(inode: Inode) -> None:
    """Refuse what is no directory, or too large a one.

    Raises:
        FormatError: it is so.
    """
    if not stat.S_ISDIR(inode.mode):
        raise FormatError(tr("inode {number} is no directory", number=inode.number), hint=AGAIN)
    if inode.size > MAX_DIRECTORY:
        raise FormatError(
            tr("a directory is longer than {max_directory} bytes", max_directory=MAX_DIRECTORY)
        )


def check_link(inode: Inode) -> None:
    """Refuse what is no symbolic link, or has too long a target.

    Raises:
        FormatError: it is so.
    """
    if not stat.S_ISLNK(inode.mode) or not 0 < inode.size < MAX_LINK:
        raise FormatError(tr("inode {number} is no symbolic link", number=inode.number), hint=AGAIN)


class Entry(NamedTuple):
    """A name in a directory.

    Attributes:
        number: of its inode.
        kind: as in a mode; 0 if only the inode tells it.
    """

    name: bytes
    number: int
    kind: int


Part = tuple[list[Entry], int | None]
"""Some entries of a directory, and where the next part begins; None at the end."""


Kind = TypeVar("Kind", bound=Inode)


class FileTree(Protocol[Kind]):
    """A file system; all methods raise `FormatError` where it is damaged.

    Attributes:
        root: the number of its root.
    """

    root: int

    def inode(self, number: int) -> Kind:
        """Read an inode."""

    def entries(self, folder: Kind, start: int = 0) -> Part:
        """A part of the entries of a directory; without `.` and `..`.

        Args:
            start: 0, or what the part before returned.
        """

    def target(self, link: Kind) -> bytes:
        """The target of a symbolic link."""

    def runs(self, file: Kind, offset: int, length: int) -> Iterator[Run]:
        """Where bytes of a file lie in the device, in order, up to the file's end."""


def prepare_nothing(ranges: Sequence[tuple[int, int]]) -> None:
    """The `Prepare` of a device all of which is here."""


def content(runs: Iterable[Run], read: Read, prepare: Prepare = prepare_nothing) -> bytes:
    """The bytes of some runs, which must be few."""
    runs = list(runs)
    prepare(places(runs))
    return b"".join(_bytes(run, read) for run in runs)


def places(runs: Iterable[Run]) -> list[tuple[int, int]]:
    """Where the bytes of some runs lie in the device: offset, length."""
    return [(place, size) for size, place in runs if isinstance(place, int)]


def _bytes(run: Run, read: Read) -> bytes | memoryview:
    size, place = run
    if place is None:
        return bytes(size)
    return read(place, size) if isinstance(place, int) else place
