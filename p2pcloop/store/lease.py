"""Leases: the images and torrents that running readers use, which must not be evicted.

A lease is a file in the home's `leases/`, `<id in hexadecimal>.<random>`, with the id of a manifest
or the info hash of a single torrent. It is empty, or holds one line for people that names the
reader. The reader holds a lock on it (flock(2), shared), which the kernel frees when that process
ends for any reason. So the reader need not tell p2pcloopd, and a lease without a lock is left over.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from p2pcloop.errors import storage_error
from p2pcloop.store.home import Home
from p2pcloop.text import printable
from p2pcloop.words import tr

_BEGUN = ".new-"
"""The start of the name of a lease that is not locked yet."""

_MAX_HOLDER = 400
"""Characters of the line that names the reader."""

_LEASE = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})\.[^.]+")


class Lease:
    """Holds an image, or a torrent, until it is closed or this process ends."""

    def __init__(
        self,
        home: Home,
        id: bytes,  # noqa: A002  of whichever kind
        holder: str = "",
    ) -> None:
        """Take the lease; from now on the image's layers and sources are not evicted.

        Args:
            home: whose store holds it.
            id: of a manifest, 32 bytes, or the info hash of a torrent, 20 bytes.
            holder: the reader, for people: "the guest of @key/debian, process 4711".

        Raises:
            StorageError: the system refused.
        """
        try:
            while not self._take(home, id.hex(), holder):
                pass
        except OSError as err:
            raise storage_error(tr("cannot write in {path}", path=home.leases), err) from err

    def _take(self, home: Home, id_text: str, holder: str) -> bool:
        """Make and lock the file, then give it its name.

        False if it was deleted, as left over, between being made and being locked.
        """
        home.leases.mkdir(mode=0o700, exist_ok=True)  # a home made before there were leases
        self._fd, begun = tempfile.mkstemp(prefix=_BEGUN, dir=home.leases)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            os.write(self._fd, printable(holder)[:_MAX_HOLDER].encode())
            random = Path(begun).name.removeprefix(_BEGUN)
            self._path = home.leases / f"{id_text}.{random}"
            Path(begun).rename(self._path)
        except FileNotFoundError:
            os.close(self._fd)
            return False
        except OSError:
            os.close(self._fd)
            Path(begun).unlink(missing_ok=True)
            raise
        return True

    def close(self) -> None:
        """End the lease; a second call does nothing."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def leased(home: Home) -> set[bytes]:
    """The ids of manifests and torrents that are in use now; left-over leases are deleted.

    Raises:
        StorageError: the system refused.
    """
    return {id_ for id_, _ in _held(home)}


def lease_holders(home: Home) -> list[str]:
    """The readers of this home, one line for people each, in alphabetical order.

    Raises:
        StorageError: the system refused.
    """
    return sorted({holder for _, holder in _held(home) if holder})


def _held(home: Home) -> list[tuple[bytes, str]]:
    """The id and the holder of each lease that is held."""
    found: list[tuple[bytes, str]] = []
    try:
        for path in home.leases.iterdir() if home.leases.is_dir() else ():
            named = _LEASE.fullmatch(path.name)
            if named is None and not path.name.startswith(_BEGUN):
                continue  # not ours: NFS gives such a name to a deleted file that is open
            with suppress(FileNotFoundError):  # its reader has just ended, or just renamed it
                if _is_held(path) and named is not None:
                    holder = path.read_text("utf-8", "replace")[:_MAX_HOLDER]
                    found.append((bytes.fromhex(named[1]), printable(holder)))
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=home.leases), err) from err
    return found


def _is_held(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink()
        return False
    finally:
        os.close(fd)
