"""Opening image files for commands. The content of a container is unpacked for the command."""

from __future__ import annotations

from pathlib import Path

from p2pcloop.client.invocation import WHOLE_DISK, FileChoice, chosen, until_command_ends
from p2pcloop.client.progress import progress_bar
from p2pcloop.errors import UsageError
from p2pcloop.formats.containers import CONTAINERS
from p2pcloop.formats.filesystem import detect_filesystem
from p2pcloop.formats.iso import NESTED
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import inspect_copy, inspect_file, unchanged
from p2pcloop.making.pack import read_start
from p2pcloop.making.unpack import unpack, unpack_nested
from p2pcloop.store.home import Home
from p2pcloop.words import tr

_MAX_DEPTH = 3
"""How many containers may lie in each other: a compressed disk image is two."""


def open_image_file(path: Path, home: Home, *, quiet: bool = False) -> ImageFile:
    """Find out what a file is, and unpack the content of a container.

    The unpacked copy lies in the staging folder of the home. It is deleted when the command ends.

    Args:
        quiet: show no progress.

    Raises:
        UsageError, FormatError, NotHereError: as of `inspect_file` and `unpack`.
        BusyError: another program wrote to the file meanwhile.
        NeedsPackageError: a program that reads it is not on this system.
        StorageError: there is no room for its content, or the disk refused.
    """
    choice = FileChoice.current()
    partition, raw = choice.partition, choice.raw or chosen(WHOLE_DISK, False)
    file = inspect_file(path, partition=partition, raw=raw)
    while file.kind in CONTAINERS or (not raw and _is_nested(file)):
        if len(file.packed) == _MAX_DEPTH:
            raise UsageError(
                tr(
                    "{path} has more than {max_depth} containers in each other",
                    path=path,
                    max_depth=_MAX_DEPTH,
                ),
                hint="unpack it",
            )
        copy = _unpack(file, home, raw=raw, quiet=quiet)
        if copy is None:
            break
        packed = (*file.packed, "squashfs" if file.kind == "iso" else file.kind)
        # Messages show the name that the user gave.
        file = inspect_copy(copy, path, packed, partition=partition, raw=raw)
    return file


def check_publishable(file: ImageFile) -> None:
    """Refuse to publish a file that may be no image, unless the user gave --raw.

    Raises:
        UsageError: it may be none.
    """
    if file.doubt:
        raise UsageError(
            tr("{file} may be no disk image: {doubt}", file=file.name, doubt=file.doubt),
            hint="--raw publishes it as a device all the same",
        )


def _is_nested(file: ImageFile) -> bool:
    """Whether it may be a squashfs that holds only a file with another file system."""
    if file.kind != "iso" or file.inside[0].name.lower() != NESTED.lower():
        return False
    return file.inside[0].kind == "raw" and detect_filesystem(read_start(file, 4096)) == "squashfs"


def _unpack(file: ImageFile, home: Home, *, raw: bool, quiet: bool) -> Path | None:
    """Return the path of the content; None if no file system is nested."""
    home.create()
    folder = until_command_ends(home.staging())
    out = folder / "image"
    with progress_bar("unpacking", quiet=quiet) as progress, unchanged(file):
        if file.kind != "iso":
            unpack(file.kind, file.path, out, progress, name=file.name, raw=raw)
            return out
        where = file.inside[0].extents
        if len(where) > 1:
            raise UsageError(
                tr(
                    "{name} on {file} lies in {where_count} places",
                    name=file.inside[0].name,
                    file=file.name,
                    where_count=len(where),
                ),
                hint="mount it, and seed the file system that is in it",
            )
        found = unpack_nested(file.path, where.start, out, progress, name=file.name)
        return out if found else None
