"""Second copies of files seeded in place: used when the first is gone or changed.

A torrent reads each of its files in one place. Where the user seeds a second copy of them, under
another name perhaps, the first stays in use, and the copy is noted. It is used once the first is
gone or changed (`Stored.look`), after it was compared with its hashes, as any file that changed.

    torrents/<info hash>/copies   msgpack: {"format": 1, "copies": [{path below data/: place}]}

Everything here blocks on the disk and is meant for a worker thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgpack

from p2pcloop.errors import storage_error
from p2pcloop.formats.named import sync_names
from p2pcloop.store.home import replace_file
from p2pcloop.words import tr

COPIES = "copies"
"""What the file is called."""

Places = Mapping[Path, Path]
"""Where the files of a torrent lie that are read elsewhere, by their paths below `data/`."""

MAX_COPIES = 16
_MAX_SIZE = 1 << 20
_FORMAT = 1


def load_copies(directory: Path) -> list[Places]:
    """What is noted for a torrent, the newest first; nothing where that is damaged.

    Raises:
        StorageError: the disk refused.
    """
    try:
        with open(directory / COPIES, "rb") as file:
            kept = msgpack.unpackb(file.read(_MAX_SIZE))
        if kept["format"] != _FORMAT:
            return []
        return [
            {_path(name): _path(place) for name, place in each.items()} for each in kept["copies"]
        ]
    except FileNotFoundError:
        return []
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=directory / COPIES), err) from err
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
        return []


def record_copy(directory: Path, places: Places) -> None:
    """Note a copy, durably; the oldest are forgotten where there are too many.

    Raises:
        StorageError: the disk refused.
    """
    known = [places, *(each for each in load_copies(directory) if each != places)]
    _save(directory, known[:MAX_COPIES])


def take_over(directory: Path, now: Places, copy: Places) -> None:
    """Have a torrent read a copy from now on; what it read before becomes one.

    Raises:
        StorageError: the disk refused.
    """
    known = [now, *(each for each in load_copies(directory) if each not in (now, copy))]
    _save(directory, known[:MAX_COPIES])
    for name, place in copy.items():
        link = directory / "data" / name
        fresh = directory / "link"
        try:
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(place)
            fresh.replace(link)
            sync_names(link.parent)
        except OSError as err:
            raise storage_error(tr("cannot make {link}", link=link), err) from err


def _save(directory: Path, copies: list[Places]) -> None:
    packed = [
        {os.fsencode(name): os.fsencode(place) for name, place in each.items()} for each in copies
    ]
    replace_file(directory / COPIES, msgpack.packb({"format": _FORMAT, "copies": packed}))


def _path(value: object) -> Path:
    """A path may be no text."""
    if not isinstance(value, bytes):
        raise TypeError("no path")
    return Path(os.fsdecode(value))
