"""Folders for the sockets and files of one guest, which go even if their owner is killed.

    p2pcloop-guest-XXXXXXXX    locked (flock(2)) by the process that made it and those that it forks

A guest's block server outlives the process that runs the guest, and deletes the folder if that was
killed (block/process.py). If both were, the next that ends does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pcloop.store.socket_path import socket_folder

_NEW, _LOCKED = "p2pcloop-new-", "p2pcloop-guest-"

_open: list[tuple[int, Path]] = []
"""The folder that this process has, with the number of the process."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that only this user can reach, with room for the path of a socket; it goes at the
    end, and so do those of killed processes. A second one of a process is in its first one."""
    for pid, first in _open:
        if pid == os.getpid():
            with tempfile.TemporaryDirectory(dir=first, ignore_cleanup_errors=True) as name:
                yield Path(name)
            return
    place = Path(socket_folder())
    fd, folder = _make(place)
    _open.append((os.getpid(), folder))
    try:
        yield folder
    finally:
        _open.remove((os.getpid(), folder))
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)
        _sweep(place)


def _make(place: Path) -> tuple[int, Path]:
    """Make a folder; its descriptor, which holds the lock. It gets its name once it is locked."""
    made = Path(tempfile.mkdtemp(prefix=_NEW, dir=place))
    fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd, made.rename(place / made.name.replace(_NEW, _LOCKED))


def _sweep(place: Path) -> None:
    """Delete this user's folders that no process has locked."""
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith(_LOCKED):
                with suppress(OSError):  # another process sweeps, too
                    _delete_if_unused(entry)


def _delete_if_unused(entry: os.DirEntry[str]) -> None:
    if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
        return
    fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path)
    finally:
        os.close(fd)
