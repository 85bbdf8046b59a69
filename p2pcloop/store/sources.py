"""From which file the versions of a name were made here: another file is another image, until the
user says that it is the next version.

`sources/<key hex>-<label>` in the home holds two paths with a NUL between them: as it was given,
absolute, and without symbolic links.
"""

from __future__ import annotations

import os
from pathlib import Path

from p2pcloop.errors import storage_error
from p2pcloop.formats.name import Name
from p2pcloop.store.home import Home, replace_file


def known_source(home: Home, name: Name) -> Path | None:
    """The file of which a version was made here last, as it was given; None where none is known.

    Raises:
        StorageError: the system refused.
    """
    paths = _read(home, name)
    return Path(os.fsdecode(paths[0])) if paths else None


def is_source(home: Home, name: Name, path: Path) -> bool:
    """Whether a version was made here last of this file, by the path that was given or by where it
    leads.

    Raises:
        StorageError: the system refused.
    """
    return any(
        known == found for known, found in zip(_read(home, name), _paths(path), strict=False)
    )


def remember_source(home: Home, name: Name, path: Path) -> None:
    """Note that a version was made of this file.

    Raises:
        StorageError: the system refused.
    """
    try:
        home.sources.mkdir(mode=0o700, exist_ok=True)
    except OSError as err:
        raise storage_error(f"cannot create {home.sources}", err) from err
    replace_file(_place(home, name), b"\0".join(_paths(path)))


def _paths(path: Path) -> tuple[bytes, bytes]:
    return os.fsencode(os.path.abspath(path)), os.fsencode(path.resolve())  # noqa: PTH100  no links


def _read(home: Home, name: Name) -> list[bytes]:
    try:
        return _place(home, name).read_bytes().split(b"\0")
    except FileNotFoundError:
        return []
    except OSError as err:
        raise storage_error(f"cannot read {_place(home, name)}", err) from err


def _place(home: Home, name: Name) -> Path:
    return home.sources / f"{name.key.hex()}-{name.label}"
