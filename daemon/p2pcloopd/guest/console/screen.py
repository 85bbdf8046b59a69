"""What a guest has printed of late, for all who follow it, and its log on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import trio

from p2pcloop.errors import storage_error
from p2pcloop.store.guests import MAX_LOG
from p2pcloop.words import tr

KEPT = 1 << 18
"""Bytes that a follower may lag behind before it loses some."""

_SHOWN = 2048
"""Bytes of earlier output that a new follower is shown at most."""

_PIECE = 1 << 16


class Recent:
    """The last `KEPT` bytes of output, by their position from the start.

    Attributes:
        position: the number of bytes printed so far.
        prompted: whether a prompt has stood there.
    """

    def __init__(self) -> None:
        self.position = 0
        self.prompted = False
        self._kept = bytearray()
        self._changed: trio.Event | None = None  # made by the tasks that wait

    def take(self, data: bytes) -> None:
        """Add what was printed next."""
        self.position += len(data)
        self._kept += data
        del self._kept[: max(0, len(self._kept) - KEPT)]
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def start(self) -> int:
        """The position from which a new follower reads: some whole lines back."""
        shown = bytes(self._kept[-_SHOWN:])
        if len(shown) == _SHOWN:
            shown = shown[shown.find(b"\n") + 1 :]
        return self.position - len(shown)

    async def read(self, position: int) -> tuple[int, bytes]:
        """Wait for output behind `position`.

        Returns:
            The position of the first byte, which is later than asked for where bytes were lost,
            and up to 64 KiB.
        """
        while position >= self.position:
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()
        begin = self.position - len(self._kept)
        position = max(position, begin)
        return position, bytes(self._kept[position - begin :][:_PIECE])


class Log:
    """A file that output is appended to. At `MAX_LOG` bytes its content moves to `NAME.1`.

    The file itself stays: other processes may have it as their standard error.

    Attributes:
        fd: its descriptor, which appends.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the log.

        Raises:
            StorageError: the system refused.
        """
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self.fd = os.open(path, flags, 0o600)
        except OSError as err:
            raise storage_error(tr("cannot write {path}", path=path), err) from err

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            OSError: the system refused, or took a part only.
        """
        if os.write(self.fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if (size := os.fstat(self.fd).st_size) > MAX_LOG:
            earlier = self._path.with_name(self._path.name + ".1")
            new = earlier.with_name(earlier.name + ".new")
            new.write_bytes(os.pread(self.fd, size, 0))
            new.replace(earlier)
            os.ftruncate(self.fd, 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)
