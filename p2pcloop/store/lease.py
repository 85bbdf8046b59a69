"""Leases: which torrents running readers use, so that they are not evicted.

A lease is a file in the home's `leases/`: the info hashes in hexadecimal, one a line. Who uses the
torrents holds it locked (flock(2), shared); the kernel lets go of it when that process ends,
however it ends. So p2pcloopd need not be told, and a lease that nobody holds is left over.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

from p2pcloop.errors import FormatError, storage_error
from p2pcloop.formats.manifest import INFO_HASH_SIZE
from p2pcloop.store.home import Home

_BEGUN = ".new-"
"""Begins the name of a lease that is not locked and written yet."""

_MAX_SIZE = 1 << 20


class Lease:
    """Holds torrents until it is closed or this process ends."""

    def __init__(self, home: Home, torrents: Iterable[bytes]) -> None:
        """Take the lease; from now on nothing of `torrents` is evicted.

        Raises:
            StorageError: the system refused.
        """
        text = "".join(f"{torrent.hex()}\n" for torrent in sorted(set(torrents)))
        try:
            while not self._take(home, text.encode()):
                pass
        except OSError as err:
            raise storage_error(f"cannot write in {home.leases}", err) from err

    def _take(self, home: Home, text: bytes) -> bool:
        """Write and lock the file, then give it its name; False where it was taken for left over
        between being made and being locked."""
        home.leases.mkdir(mode=0o700, exist_ok=True)  # a home of before there were leases
        self._fd, begun = tempfile.mkstemp(prefix=_BEGUN, dir=home.leases)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            with open(self._fd, "wb", closefd=False) as file:
                file.write(text)
            self._path = home.leases / Path(begun).name.removeprefix(_BEGUN)
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
        """Let go; a second call does nothing."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def leased_torrents(home: Home) -> set[bytes]:
    """The torrents that are in use now; left-over leases are deleted.

    Raises:
        FormatError: a lease that is held is damaged.
        StorageError: the system refused.
    """
    found: set[bytes] = set()
    try:
        for path in home.leases.iterdir() if home.leases.is_dir() else ():
            with suppress(FileNotFoundError):  # its holder has just ended
                found |= _read_lease(path)
    except OSError as err:
        raise storage_error(f"cannot read {home.leases}", err) from err
    return found


def _read_lease(path: Path) -> set[bytes]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(os.read(fd, _MAX_SIZE), path)
    else:
        path.unlink()
        return set()
    finally:
        os.close(fd)


def _parse(text: bytes, path: Path) -> set[bytes]:
    """Read a lease; one that is just being taken may be empty, and is looked at again before each
    eviction."""
    try:
        torrents = {bytes.fromhex(line) for line in text.decode().splitlines()}
    except ValueError:
        torrents = {b""}
    if any(len(torrent) != INFO_HASH_SIZE for torrent in torrents):
        raise FormatError(f"the lease {path} is damaged", hint="end the guests that run")
    return torrents
