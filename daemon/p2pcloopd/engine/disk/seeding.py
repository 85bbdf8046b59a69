"""Making a torrent of prepared files, and moving it into the store.

Everything here blocks on the disk and is meant for a worker thread.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from p2pcloop.errors import BusyError, storage_error
from p2pcloop.formats.named import sync_names
from p2pcloop.store.have import HaveFile
from p2pcloop.store.in_place import save_stamps
from p2pcloop.words import tr
from p2pcloopd.engine.disk.content import Content, hash_pieces, scan
from p2pcloopd.engine.disk.copies import COPIES
from p2pcloopd.engine.disk.metainfo import bencode, info_dictionary, parse_info
from p2pcloopd.engine.disk.record import Record

OLD_PREFIX = "old-"
"""How the directory of a torrent begins that has given way and is being deleted."""


def make_torrent(staging: Path, progress: Callable[[int, int], None]) -> bytes:
    """Hash what lies in `staging`/data; write its metadata and have file beside it, durably.

    Returns:
        The info hash, 20 bytes: the same content gives the same one.

    Raises:
        FormatError: there is nothing to seed, or more than one file or directory.
        StorageError: the disk refused.
        BusyError: a file that lies elsewhere was written to meanwhile.
    """
    record = Record(staging)
    layout = scan(record.data)
    content = Content(record.data, layout)
    content.hold(content.find())
    before = content.stamps()
    info = info_dictionary(layout, hash_pieces(content, layout, progress))
    parse_info(info)  # what we make must be what we would take from others
    encoded = bencode(info)
    info_hash = hashlib.sha1(encoded, usedforsecurity=False).digest()
    if content.stamps() != before:
        files = ", ".join(str(path.readlink()) for path in content.foreign())
        raise BusyError(
            tr("{files} was written to while it was read", files=files),
            hint="end what uses it, and try again",
        )
    content.sync()
    content.sync_names(staging)
    if before:
        save_stamps(staging, before)
    record.save_torrent(encoded)
    HaveFile.create(staging / "have", info_hash, layout.pieces, complete=True).close()
    return info_hash


def move_into_place(staging: Path, directory: Path) -> None:
    """Make `staging` the torrent's directory, durably; one that is there gives way.

    Where to look for peers, and for copies, is kept from the old one.

    Raises:
        StorageError: the disk refused.
    """
    try:
        old = None
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.exists():
            for name in ("peers", COPIES):
                if (directory / name).exists():
                    shutil.copy(directory / name, staging / name)
            old = Path(tempfile.mkdtemp(prefix=OLD_PREFIX, dir=staging.parent))
            directory.rename(old / "torrent")
        staging.rename(directory)
        sync_names(directory.parent)
        if old is not None:
            shutil.rmtree(old)
    except OSError as err:
        raise storage_error(
            tr("cannot move {staging} to {directory}", staging=staging, directory=directory), err
        ) from err


def remove_directory(directory: Path, tmp: Path) -> None:
    """Take a torrent's directory out of the store, then delete it; links lead to what stays.

    Raises:
        StorageError: the disk refused.
    """
    try:
        old = Path(tempfile.mkdtemp(prefix=OLD_PREFIX, dir=tmp))
        directory.rename(old / "torrent")
        sync_names(directory.parent)
        shutil.rmtree(old)
    except OSError as err:
        raise storage_error(tr("cannot remove {path}", path=directory), err) from err


def discard(staging: Path) -> None:
    """Remove a staging directory; what its symbolic links lead to stays.

    Raises:
        StorageError: the disk refused.
    """
    try:
        shutil.rmtree(staging)
    except OSError as err:
        raise storage_error(tr("cannot remove {staging}", staging=staging), err) from err
