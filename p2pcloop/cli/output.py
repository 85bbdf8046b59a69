"""Checks of files that a command will write, before it begins its work."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from p2pcloop.errors import UsageError, storage_error
from p2pcloop.store.home import Home
from p2pcloop.words import tr


def check_place(path: Path) -> None:
    """Check that a file of this name could be made.

    Raises:
        UsageError: it is a folder.
        StorageError: there is no folder for it.
    """
    if path.is_dir():
        raise UsageError(tr("{path} is a folder", path=path), hint="give the name of a file in it")
    if path.parent.exists() and not path.parent.is_dir():
        raise UsageError(
            tr("{parent} is no folder", parent=path.parent), hint="choose another name"
        )
    if not path.parent.is_dir():
        missing = FileNotFoundError(errno.ENOENT, "")
        raise storage_error(
            tr("cannot write {path}", path=path),
            missing,
            hint=tr("make {parent} first", parent=path.parent),
        )


def check_writable(path: Path, home: Home) -> None:
    """Check that a file can be made, or written if it exists; change nothing.

    Raises:
        UsageError: it is a folder, or a file that the node serves.
        StorageError: there is no folder for it, or no permission.
    """
    check_place(path)
    check_unserved(path, home)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise storage_error(tr("cannot write {path}", path=path), PermissionError(errno.EACCES, ""))


def check_not_served(path: Path, home: Home) -> None:
    """Check that a command does not write over a file that the node serves, or that is in its home.

    Raises:
        UsageError: it would.
        StorageError: the path or the store cannot be read.
    """
    place = Path(os.path.realpath(path))
    inside = place.is_relative_to(os.path.realpath(home.root))
    if (inside and path.exists()) or _is_of_home(place, home):
        raise UsageError(
            tr("{path} lies in the node's home, {root}", path=path, root=home.root),
            hint="choose another name",
        )
    check_unserved(path, home)


def check_unserved(path: Path, home: Home) -> None:
    """Check that a command does not write over a file that the node serves, by any of its names.

    Raises:
        UsageError: it would.
        StorageError: the path or the store cannot be read.
    """
    if not path.is_file():
        return
    from p2pcloop.store.in_place import serves  # noqa: PLC0415  for files that are there

    if serves(home.torrents, path):
        raise UsageError(
            tr("{path}: this node serves it, and its readers rely on every byte", path=path),
            hint="choose another file",
        )


def check_outside_store(directory: Path, home: Home) -> None:
    """Check that a mirror is not put into a store: both have directories of the same names.

    Raises:
        UsageError: it is the node's home, or in one of the directories of its store.
    """
    place = Path(os.path.realpath(directory))
    if _is_of_home(place, home) or place == Path(os.path.realpath(home.root)):
        raise UsageError(
            tr(
                "{directory} is the node's own, of its home {root}",
                directory=directory,
                root=home.root,
            ),
            hint="choose another directory, such as one in it of a name of its own",
        )


def _is_of_home(place: Path, home: Home) -> bool:
    """Whether what lies there is, or would be taken for, what the node itself keeps."""
    return any(place.is_relative_to(os.path.realpath(each)) for each in home.own())
