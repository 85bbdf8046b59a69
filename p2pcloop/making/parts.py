"""What in an image file is the image: the file itself, or files on a CD image in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2pcloop.errors import FormatError, storage_error
from p2pcloop.formats.boot import MAX_ROOTS
from p2pcloop.formats.cloop import HEADER_SIZE as CLOOP_HEADER_SIZE
from p2pcloop.formats.cloop import is_cloop
from p2pcloop.formats.extents import Extents
from p2pcloop.formats.filesystem import PROBE_SIZE, ROOT_TYPES, describe, detect_filesystem
from p2pcloop.formats.iso import IsoFile, read_iso


@dataclass(frozen=True, slots=True)
class Part:
    """A device that lies in an image file.

    Attributes:
        name: its path on the CD; "" where it is the image file itself.
        kind: "cloop" or "raw".
        extents: where it lies in the image file.
    """

    name: str
    kind: str
    extents: Extents


def find_parts(path: Path, fd: int, size: int) -> tuple[Part, ...]:
    """Find what on a CD image is the image, from base to top; the CD itself where nothing is.

    Args:
        path: of the CD image, for messages.
        fd: of it.
        size: its bytes.

    Raises:
        FormatError: it is damaged, or holds a KNOPPIX that cannot be read.
        StorageError: the disk refused.
    """
    try:
        files = read_iso(fd, size).images
        if len(files) > MAX_ROOTS:
            raise FormatError(f"it has {len(files)} images, and at most {MAX_ROOTS} are joined")
        parts = tuple(_to_part(fd, file) for file in files)
    except FormatError as err:
        raise FormatError(f"{path}: {err}", hint=err.hint) from err
    except OSError as err:
        raise storage_error(f"cannot read {path}", err) from err
    return parts or (Part("", "raw", Extents([(0, size)])),)


def _to_part(fd: int, file: IsoFile) -> Part:
    head = file.extents.pread(fd, PROBE_SIZE, 0)
    tail_at = max(0, file.extents.size - CLOOP_HEADER_SIZE)
    if is_cloop(head, file.extents.pread(fd, CLOOP_HEADER_SIZE, tail_at)):
        return Part(file.name, "cloop", file.extents)
    found = detect_filesystem(head)
    if found in ROOT_TYPES:
        return Part(file.name, "raw", file.extents)
    what = f"is {describe(found)}" if found else "may be encrypted"
    raise FormatError(
        f"{file.name} on it is neither a cloop nor a file system that is known: it {what}",
        hint="decrypt or unpack it, and seed what comes out",
    )
