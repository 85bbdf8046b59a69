"""Names of files: durable ones, and open files that still have the name by which they were opened.

Between open(2) and flock(2) another process may rename or delete a file: the lock is then held on a
file that has no name any more, beside another holder of the name.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

_TRIES = 64
"""Attempts. More would mean that the file system's inode numbers are not stable."""


def sync_names(folder: Path) -> None:
    """Make the names in a folder durable, as far as its file system can.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno != errno.EINVAL:  # fsync(2): it syncs no folders (shared folders of some VMs)
            raise
    finally:
        os.close(descriptor)


def read_file(path: Path, limit: int = -1) -> bytes:
    """The content of a file; of a pipe in its place, which is never waited for, nothing.

    Raises:
        OSError: the system refused.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(limit) or b""


def has_name(descriptor: int, path: Path) -> bool:
    """Whether `path` leads to the file that is open.

    Raises:
        OSError: the system refused.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def open_named(open_file: Callable[[], int], take: Callable[[int], None], path: Path) -> int:
    """Open and lock a file; try again if it lost its name before it was locked.

    Args:
        open_file: opens `path` and returns the descriptor.
        take: locks the descriptor.
        path: the name.

    Raises:
        OSError: of `open_file` and `take`, like their other errors; no file stays open. ESTALE:
            it lost its name at every attempt.
    """
    for _ in range(_TRIES):
        descriptor = open_file()
        try:
            take(descriptor)
            if has_name(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
