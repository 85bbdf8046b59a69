"""The file that the versions of a name were made of here.

Another file is taken for another image, unless the user says that it is the next version.

`sources/<key hex>-<label>` in the home holds its path, absolute and without symbolic links; of a
disk with the partition's name below it (`p2pcloop.making.local.ImageFile.source`).
"""

from __future__ import annotations

import os
from pathlib import Path

from p2pcloop.errors import storage_error
from p2pcloop.formats.name import Name
from p2pcloop.formats.named import read_file
from p2pcloop.store.home import Home, replace_file
from p2pcloop.words import tr


def known_source(home: Home, name: Name) -> Path | None:
    """The file that the last version was made of here; None if it is not known.

    Raises:
        StorageError: the system refused.
    """
    try:
        return Path(os.fsdecode(read_file(_place(home, name))))
    except FileNotFoundError:
        return None
    except OSError as err:
        raise storage_error(tr("cannot read {home}", home=_place(home, name)), err) from err


def remember_source(home: Home, name: Name, path: Path) -> None:
    """Note that a version was made of this file.

    Raises:
        StorageError: the system refused.
    """
    try:
        home.sources.mkdir(mode=0o700, exist_ok=True)
    except OSError as err:
        raise storage_error(tr("cannot create {path}", path=home.sources), err) from err
    replace_file(_place(home, name), os.fsencode(path.resolve()))


def _place(home: Home, name: Name) -> Path:
    return home.sources / f"{name.key.hex()}-{name.label}"
