"""Unix sockets to listen on: the owner's alone, in a dead one's place, never in a living one's."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pcloop.errors import BusyError, NotHereError, UsageError, storage_error
from p2pcloop.store.socket_path import socket_address
from p2pcloop.words import tr

_BACKLOG = 64

_NO_SOCKETS = (errno.EPERM, errno.EIO, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without sockets answer: vfat the first, those in user space any."""


@contextmanager
def unix_listener(path: Path) -> Iterator[socket.socket]:
    """Listen on `path` while the context lasts; errors as for `bind_unix_listener`."""
    with bind_unix_listener(path) as listener:
        try:
            yield listener
        finally:
            # While it is still ours: a dead one may be replaced by another server's at any time.
            path.unlink(missing_ok=True)


def bind_unix_listener(path: Path) -> socket.socket:
    """Return a listening socket at `path`, mode 0600; a stale one there is replaced.

    Raises:
        UsageError: the socket's name is too long, is taken by something else, or lies in a folder
            where other users may replace it.
        NotHereError: the folder does not exist.
        BusyError: another program listens there.
        StorageError: the system refuses.
    """
    _check_folder(path.parent)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # Linux: bind creates the file with this mode
        with socket_address(path) as address:
            listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as err:
        listener.close()
        if err.errno == errno.EADDRINUSE:
            raise BusyError(tr("another program listens on {path} already", path=path)) from err
        hint = None
        if err.errno in _NO_SOCKETS:
            path.unlink(missing_ok=True)  # such a file system may make a file of another kind
            hint = tr("its file system may know no sockets, as vfat: use another folder, or --home")
        raise storage_error(tr("cannot listen on {path}", path=path), err, hint=hint) from err
    except UsageError:
        listener.close()
        raise
    return listener


def _check_folder(folder: Path) -> None:
    try:
        mode = folder.stat().st_mode
    except OSError as err:
        raise NotHereError(
            tr("there is no folder {folder} for the socket: {why}", folder=folder, why=err.strerror)
        ) from err
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        raise UsageError(
            tr("others may write in {folder} and replace a socket there", folder=folder),
            hint="choose a private folder",
        )


def _remove_stale(path: Path) -> None:
    """Remove a socket that a dead server left behind; nothing else is ever removed."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(
            tr("{path} exists and is not a socket", path=path), hint="choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            with socket_address(path) as address:
                probe.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # its backlog is full: a program listens
    raise BusyError(tr("another program listens on {path} already", path=path))
