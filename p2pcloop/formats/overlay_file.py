"""An overlay's open file: whole transfers, durability, holes, and errors in our own terms.

This is the only seam between an overlay and the disk: the overlay uses its file by the methods of
`OverlayFile` alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from p2pcloop.errors import BusyError, FormatError, NotHereError, StorageError, storage_error
from p2pcloop.formats.holes import next_data, next_hole, punch_hole
from p2pcloop.formats.named import open_named, sync_names
from p2pcloop.words import tr

_View: TypeAlias = "memoryview | bytearray | bytes"

_MAX_VIEWS = 1024  # IOV_MAX of Linux


class OverlayFile:
    """A regular file that is open and locked, addressed in bytes from its start."""

    def __init__(self, descriptor: int, path: Path) -> None:
        """Take over an open descriptor; `path` is for messages."""
        self.path = path
        self._fd = descriptor

    @classmethod
    def open(cls, path: Path, *, read_only: bool, locked: bool = True) -> OverlayFile:
        """Open and lock a file that exists: alone for writing, with other readers for reading.

        Args:
            path: the file.
            read_only: it is only read.
            locked: False leaves it unlocked: another process may write it meanwhile.

        Raises:
            NotHereError: there is no such file.
            FormatError: it is no regular file.
            BusyError: it is open elsewhere.
            StorageError: the system refused (permission, read-only medium, ...).
        """
        # O_NONBLOCK: to open a FIFO of that name must not block.
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK

        def take(descriptor: int) -> None:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FormatError(
                    tr("{path} is not an overlay: it is not a regular file", path=path)
                )
            if locked:
                cls(descriptor, path).lock(shared=read_only)

        try:
            descriptor = open_named(lambda: os.open(path, flags), take, path)
        except FileNotFoundError as err:
            raise NotHereError(tr("there is no overlay {path}", path=path)) from err
        except OSError as err:
            raise _error(err, "open", path) from err
        return cls(descriptor, path)

    @classmethod
    def create_hidden(cls, folder: Path) -> OverlayFile:
        """Make and lock an empty file (mode 0600) under a hidden name.

        Made by sudo in a folder of the user who called it, it belongs to that user, who could not
        even read it else.

        Raises:
            StorageError: the folder does not exist or cannot be written.
        """
        try:
            descriptor, name = tempfile.mkstemp(prefix=".overlay-", dir=folder)
        except OSError as err:
            raise _error(err, tr("make a file in"), folder) from err
        file = cls(descriptor, Path(name))
        try:
            _give_to_caller(descriptor, folder)
            file.lock()
        except BaseException:
            file.close()
            file.path.unlink()
            raise
        return file

    def publish(self, path: Path) -> None:
        """Make a hidden file durable and give it its name, which must be free.

        The name appears with all of the content or not at all, and never replaces another file:
        hence link(2), which refuses a name that exists, and not rename(2).

        Raises:
            StorageError: the name is taken (EEXIST), or the file system refused.
        """
        try:
            os.fsync(self._fd)
            os.link(self.path, path)
            self.path.unlink()
            sync_names(path.parent)
        except OSError as err:
            raise _error(err, "make", path) from err
        self.path = path

    def replace(self, path: Path) -> None:
        """Make a hidden file durable and replace another file by it, atomically.

        Raises:
            StorageError: the file system refused.
        """
        try:
            os.fsync(self._fd)
            self.path.replace(path)
            sync_names(path.parent)
        except OSError as err:
            raise _error(err, "replace", path) from err
        self.path = path

    def lock(self, *, shared: bool = False) -> None:
        """Lock the file while it is open; the kernel frees the lock when the process ends.

        Raises:
            BusyError: another process holds it.
        """
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise BusyError(
                tr("{path} is in use by another guest or program", path=self.path),
                hint="shut that one down first, or give this one an overlay of its own",
            ) from err
        except OSError as err:
            raise _error(err, "lock", self.path) from err

    @property
    def size(self) -> int:
        """Bytes of the file, holes included."""
        return os.fstat(self._fd).st_size

    @property
    def allocated(self) -> int:
        """Bytes of disk that the file takes."""
        return os.fstat(self._fd).st_blocks * 512

    def reserve(self, size: int, *, allocated: int) -> None:
        """Make a new file `size` bytes long, with disk room only for the first `allocated`.

        Raises:
            StorageError: no space, or a longer file than the file system can hold.
        """
        try:
            os.ftruncate(self._fd, size)
            if allocated:
                os.posix_fallocate(self._fd, 0, allocated)
        except OSError as err:
            raise _error(err, "make", self.path) from err

    def read_into(self, offset: int, views: Sequence[memoryview | bytearray]) -> None:
        """Fill `views` from `offset` on.

        Raises:
            StorageError: the disk failed, or another process cut the file short.
        """
        try:
            whole = _transfer(os.preadv, self._fd, offset, views)
        except OSError as err:
            raise _error(err, "read", self.path) from err
        if not whole:
            raise StorageError(
                tr("{path} was cut short while in use", path=self.path), errno=errno.EIO
            )

    def write(self, offset: int, views: Sequence[memoryview | bytes]) -> None:
        """Write all of `views` at `offset`; in the page cache after that, durable after `sync`.

        Raises:
            StorageError: no space or a failing disk; a part may have been written.
        """
        try:
            whole = _transfer(os.pwritev, self._fd, offset, views)
        except OSError as err:
            raise _error(err, tr("write to"), self.path) from err
        if not whole:
            raise StorageError(tr("{path} takes no more bytes", path=self.path), errno=errno.EIO)

    def copy_data(self, source: OverlayFile) -> None:
        """Copy another file, except its holes, which this new file has already.

        Raises:
            StorageError: no space or a failing disk.
        """
        for start, end in source.stretches():
            offset = start
            try:
                while offset < end:
                    # In the kernel, and where the file system can, without copying anything.
                    offset += os.copy_file_range(source._fd, self._fd, end - offset, offset, offset)
            except OSError as err:
                raise _error(err, tr("copy {path} to", path=source.path), self.path) from err

    def stretches(self) -> Iterator[tuple[int, int]]:
        """The start and the end of each stretch of the file that is no hole, in order.

        Raises:
            StorageError: the disk failed.
        """
        try:
            offset = next_data(self._fd, 0)
            while offset < self.size:
                end = next_hole(self._fd, offset)
                yield offset, end
                offset = next_data(self._fd, end)
        except OSError as err:
            raise _error(err, "read", self.path) from err

    def sync(self) -> None:
        """Make every write that has returned durable (fdatasync).

        Raises:
            StorageError: the disk failed. Writes since the last good sync may be lost, and the
                kernel does not report that again.
        """
        try:
            os.fdatasync(self._fd)
        except OSError as err:
            raise _error(err, "flush", self.path) from err

    def punch(self, offset: int, length: int) -> None:
        """Free the disk room of a range, which then reads as zeros.

        If the file system cannot make holes, nothing happens.

        Raises:
            StorageError: the disk failed.
        """
        try:
            punch_hole(self._fd, offset, length)
        except OSError as err:
            raise _error(err, tr("give back room of"), self.path) from err

    def close(self) -> None:
        """Close the file, which also unlocks it; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


_HINTS = {
    errno.EFBIG: tr("put it on a file system that takes longer files"),
    errno.EEXIST: tr("choose another name, or remove that file if it is not needed"),
    errno.EPERM: tr("put it on a file system that knows hard links and holes, such as ext4"),
}


def _give_to_caller(descriptor: int, folder: Path) -> None:
    """Give a file that sudo has made to the user who called it (sudo(8), SUDO_UID), if the folder
    is that user's."""
    user, group = (os.environ.get(name, "") for name in ("SUDO_UID", "SUDO_GID"))
    if os.geteuid() != 0 or not (user.isdigit() and group.isdigit()):
        return
    with suppress(OSError):  # a file system without owners, as vfat
        if folder.stat().st_uid == int(user):
            os.fchown(descriptor, int(user), int(group))


def _error(err: OSError, doing: str, path: Path) -> StorageError:
    return storage_error(
        tr("cannot {doing} {path}", doing=doing, path=path), err, hint=_HINTS.get(err.errno or 0)
    )


def _transfer(
    call: Callable[[int, Sequence[_View], int], int],
    descriptor: int,
    offset: int,
    views: Sequence[_View],
) -> bool:
    """Move all bytes of `views` (one byte an item) by preadv or pwritev; False if it stops."""
    left = sum(map(len, views))
    if len(views) <= _MAX_VIEWS:
        done = call(descriptor, views, offset)
        if done == left:
            return True
        views = _skip(views, done)
        offset, left = offset + done, left - done
    while left:
        done = call(descriptor, views[:_MAX_VIEWS], offset)
        if done == 0:
            return False
        views = _skip(views, done)
        offset, left = offset + done, left - done
    return True


def _skip(views: Sequence[_View], count: int) -> list[memoryview]:
    """Return the rest of `views` after their first `count` bytes."""
    rest = []
    for view in views:
        if count < len(view):
            rest.append(memoryview(view)[count:])
        count = max(0, count - len(view))
    return rest
