"""Opens image files for commands; what is in a container is unpacked while the command runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2pcloop.client.invocation import chosen, until_command_ends
from p2pcloop.client.terminal import progress_bar
from p2pcloop.errors import UsageError
from p2pcloop.formats.containers import CONTAINERS
from p2pcloop.formats.filesystem import detect_filesystem
from p2pcloop.formats.iso import NESTED
from p2pcloop.making.local import ImageFile, inspect_copy, inspect_file, unchanged
from p2pcloop.making.pack import read_start
from p2pcloop.making.unpack import unpack, unpack_nested
from p2pcloop.store.home import Home

_MAX_DEPTH = 3
"""Containers in each other: a disk image that is compressed, and the like."""


PARTITION, RAW = "p2pcloop.partition", "p2pcloop.raw"
"""Where a command's context holds what the user chose."""


@dataclass(frozen=True, slots=True)
class FileChoice:
    """What of an image file the user wants.

    Attributes:
        partition: of a disk, 0 for the one that holds the root.
        raw: the file is a device, whatever is on it.
    """

    partition: int = 0
    raw: bool = False

    @classmethod
    def current(cls) -> FileChoice:
        """That of the command that runs."""
        return cls(chosen(PARTITION, 0), chosen(RAW, False))


def open_image_file(path: Path, home: Home, *, quiet: bool = False) -> ImageFile:
    """Tell what a file is, and unpack what is in a container.

    The copy lies in the home's folder for what is being made, and goes with the command's context.

    Args:
        quiet: show no progress.

    Raises:
        UsageError, FormatError, NotHereError: as of `inspect_file` and `unpack`.
        BusyError: it was written to meanwhile.
        NeedsPackageError: a program that reads it is not on this system.
        StorageError: there is no room for what it holds, or the disk refused.
    """
    choice = FileChoice.current()
    partition, raw = choice.partition, choice.raw
    file = inspect_file(path, partition=partition, raw=raw)
    while file.kind in CONTAINERS or (not raw and _is_nested(file)):
        if len(file.packed) == _MAX_DEPTH:
            raise UsageError(
                f"{path} has more than {_MAX_DEPTH} containers in each other", hint="unpack it"
            )
        copy = _unpack(file, home, raw=raw, quiet=quiet)
        if copy is None:
            break
        packed = (*file.packed, "squashfs" if file.kind == "iso" else file.kind)
        # The name that the user gave: it is what messages tell.
        file = inspect_copy(copy, path, packed, partition=partition, raw=raw)
    return file


def check_publishable(file: ImageFile) -> None:
    """Refuse to publish what may be no image at all, unless the user said that it is one.

    Raises:
        UsageError: it may be none.
    """
    if file.doubt:
        raise UsageError(
            f"{file.name} may be no disk image: {file.doubt}",
            hint="--raw publishes it as a device all the same",
        )


def _is_nested(file: ImageFile) -> bool:
    """Whether it may be a squashfs that holds but another file system."""
    if file.kind != "iso" or file.inside[0].name.lower() != NESTED.lower():
        return False
    return file.inside[0].kind == "raw" and detect_filesystem(read_start(file, 4096)) == "squashfs"


def _unpack(file: ImageFile, home: Home, *, raw: bool, quiet: bool) -> Path | None:
    """Return where the content lies; None where nothing is nested."""
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
                f"{file.inside[0].name} on {file.name} lies in {len(where)} places",
                hint="mount it, and seed the file system that is in it",
            )
        found = unpack_nested(file.path, where.start, out, progress, name=file.name)
        return out if found else None
