"""Files that are served where they lie: opened without following links, recognised later.

A node serves a user's file with the user's rights, and other users may be able to write in its
directory. So the node looks the name up only once: no part of the path may be a symbolic link, the
file must be regular, and all reads use the descriptor that was opened then. The store keeps a stamp
of the file (device, inode, size, times) from when its pieces were compared with their hashes. If
the stamp differs, the file was replaced or written to: its pieces are compared again before it is
served.

    torrents/<info hash>/in-place   msgpack: {"format": 1, "files": {path below data/: stamp}}

`stamp` is [device, inode, size, modified, changed], times in nanoseconds since 1970.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Self

import msgpack

from p2pcloop.errors import MismatchError, StorageError, storage_error
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import replace_file
from p2pcloop.words import tr

STAMPS = "in-place"

_FORMAT = 1
_MAX_SIZE = 1 << 20
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_OPENAT2 = 437  # the same on every architecture (include/uapi/asm-generic/unistd.h)
_RESOLVE_NO_SYMLINKS = 0x04  # openat2(2)
_OPEN_HOW = struct.Struct("=QQQ")


@dataclass(frozen=True, slots=True)
class Stamp:
    """The state of a file at one moment: it differs if the content may differ.

    Attributes:
        modified, changed: mtime and ctime, nanoseconds since 1970.
    """

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The stamp of the file that was examined."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


class HeldFile:
    """A regular file that is open for reading, and is closed with the last reference to it.

    So a thread that reads it needs no lock against a thread that drops it.

    Attributes:
        path: under which it was opened.
        fd: its descriptor.
    """

    def __init__(self, path: Path) -> None:
        """Open the file at an absolute path of which no part is a symbolic link.

        Raises:
            StorageError: there is none, it is not a regular file, or the system refuses.
        """
        self.fd = -1
        self.path = path
        try:
            # O_PATH: to open a device or a FIFO otherwise may have an effect.
            found = _open_plainly(path, os.O_PATH | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(found).st_mode):
                    raise StorageError(
                        tr("{path} is not a regular file", path=path), errno=errno.EINVAL
                    )
                self.fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | _FLAGS)
            finally:
                os.close(found)
        except OSError as err:
            if err.errno == errno.ELOOP:
                raise StorageError(
                    tr("a symbolic link is on the way to {path}", path=path), errno=errno.ELOOP
                ) from err
            raise storage_error(tr("cannot open {path}", path=path), err) from err

    @property
    def link(self) -> str:
        """A path by which this process can open this file again, even if its name is gone."""
        return f"/proc/self/fd/{self.fd}"

    def stamp(self) -> Stamp:
        """Its stamp now.

        Raises:
            StorageError: the system refuses.
        """
        try:
            return Stamp.of(os.fstat(self.fd))
        except OSError as err:
            raise storage_error(tr("cannot look at {path}", path=self.path), err) from err

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def load_stamps(directory: Path) -> dict[str, Stamp]:
    """The stamps of a torrent's files from when they were compared; empty if there are none."""
    try:
        with open(directory / STAMPS, "rb") as file:
            kept = msgpack.unpackb(file.read(_MAX_SIZE))
        if kept["format"] != _FORMAT:
            return {}
        return {str(name): Stamp(*map(int, stamp)) for name, stamp in kept["files"].items()}
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=directory / STAMPS), err) from err
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
        return {}  # damaged: they are compared again


def save_stamps(directory: Path, stamps: Mapping[str, Stamp]) -> None:
    """Keep the stamps of a torrent's files, durably.

    Raises:
        StorageError: the disk refused.
    """
    files = {name: astuple(stamp) for name, stamp in stamps.items()}
    replace_file(directory / STAMPS, msgpack.packb({"format": _FORMAT, "files": files}))


def hold_served(directory: Path, name: str) -> HeldFile:
    """Open a file of a torrent's `data/` to serve it. One outside the home must have its stamp.

    Args:
        directory: of the torrent.
        name: the file's path below `data/`.

    Raises:
        MismatchError: the file was replaced, or written to.
        StorageError: it is gone, or cannot be opened.
    """
    path = directory / "data" / name
    if not path.is_symlink():
        return HeldFile(path.resolve())  # the path of the home itself may have links
    held = HeldFile(path.readlink())
    if load_stamps(directory).get(name) != held.stamp():
        raise MismatchError(
            tr("{path} is not what was seeded, or was not compared with it yet", path=held.path),
            hint="put the old file back, or seed it again",
        )
    return held


def serves(torrents: Path, path: Path) -> bool:
    """Whether a path leads to a file that a node serves, in its home or elsewhere.

    Args:
        torrents: the home's.
        path: may be any name of the file: a hard link, a symbolic link, a path in /proc.

    Raises:
        StorageError: the system refuses.
    """
    try:
        status = path.stat()
        served = (file for file in torrents.glob("*/data/**/*") if not file.is_dir())
        return any(_is_file(file, status) for file in served)
    except FileNotFoundError:
        return False
    except OSError as err:
        raise storage_error(tr("cannot look at {path}", path=path), err) from err


def _is_file(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except OSError:
        return False  # it is gone, or its disk is


def _open_plainly(path: Path, flags: int) -> int:
    """Open an absolute path of which no part is a symbolic link (ELOOP)."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = _OPEN_HOW.pack(flags, 0, _RESOLVE_NO_SYMLINKS)
    fd = libc.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_int(-1),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
    )
    if fd >= 0:
        return int(fd)
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EPERM):  # a kernel before 5.6, or a filter of containers
        return _walk(path, flags)
    raise OSError(number, os.strerror(number), str(path))


def _walk(path: Path, flags: int) -> int:
    """The same, one directory after the other."""
    at = os.open(path.anchor, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.parts[1:-1]:
            inner = os.open(
                part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at
            )
            os.close(at)
            at = inner
        fd = os.open(path.name, flags | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)
    if stat.S_ISLNK(os.fstat(fd).st_mode):  # O_PATH opens the link itself
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return fd
