"""Versions whose data was removed from this home, although they stay known.

`manifests/<id hex>.removed` is an empty file. A version that was published from here stays known,
so that the number of the next one follows; but its layers are not needed here any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from p2pcloop.errors import storage_error
from p2pcloop.store.home import Home, replace_file
from p2pcloop.words import tr

_SUFFIX = ".removed"


def mark_removed(home: Home, ids: Iterable[bytes]) -> None:
    """Note that the data of manifests was removed, durably.

    Raises:
        StorageError: the system refused.
    """
    for manifest_id in ids:
        replace_file(_mark(home, manifest_id), b"")


def unmark_removed(home: Home, manifest_id: bytes) -> None:
    """Note that the data of a manifest is wanted here again.

    Raises:
        StorageError: the system refused.
    """
    try:
        _mark(home, manifest_id).unlink(missing_ok=True)
    except OSError as err:
        raise storage_error(tr("cannot delete {home}", home=_mark(home, manifest_id)), err) from err


def is_removed(home: Home, manifest_id: bytes) -> bool:
    """Whether the data of a manifest was removed."""
    return _mark(home, manifest_id).exists()


def _mark(home: Home, manifest_id: bytes) -> Path:
    return home.manifests / f"{manifest_id.hex()}{_SUFFIX}"
