"""Finds on a CD image (ISO 9660) the files that are images of a live system (docs/formats/iso.md).

pycdlib reads the directories, through a file that gives it only so many bytes in so much time: it
looks at all directories at once, and a damaged or hostile image may lead it anywhere. What it makes
of one is checked here before it is used.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO, NoReturn, cast

from p2pcloop.errors import FormatError
from p2pcloop.formats.extents import Extents

if TYPE_CHECKING:
    from pycdlib import PyCdlib
    from pycdlib.dr import DirectoryRecord

SYSTEM_AREA = 32768
"""Bytes before the first volume descriptor (ECMA-119, 6.2.1)."""

MAGIC = b"CD001"
MAX_READ = 256 << 10
"""Bytes of one directory or path table: some 1,500 files with Rock Ridge names. pycdlib may take
time that grows with the square of it."""

MAX_DIRECTORIES = 8 << 20
"""Bytes of all directories together: 30,000 files with both extensions, 80 MB of memory."""

MAX_SECONDS = 10.0
MAX_EXTENTS = 4096
"""16 TiB in extents of 4 GiB."""

_SQUASHFS = re.compile(r"filesystem\.squashfs|filesyst\.squ")
_PLACES = (
    ("knoppix", re.compile(r"knoppix([1-9][0-9]?)?")),
    ("live", _SQUASHFS),
    ("casper", _SQUASHFS),
)
"""Folder and files of the live systems that are known: KNOPPIX's, Debian's, Ubuntu's."""

_AGAIN = "fetch or copy it again"


@dataclass(frozen=True, slots=True)
class IsoFile:
    """A file on the CD.

    Attributes:
        name: its path, as the CD has it.
        extents: where it lies in the CD image.
    """

    name: str
    extents: Extents


@dataclass(frozen=True, slots=True)
class Iso:
    """What is on a CD.

    Attributes:
        volume: its name.
        names: whose file names it has: "Rock Ridge", "Joliet" or "ISO 9660".
        boots: whether it can be booted from (El Torito).
        images: the files that make up the live system, from base to top; empty where none is known.
    """

    volume: str
    names: str
    boots: bool
    images: tuple[IsoFile, ...]


def is_iso(head: bytes) -> bool:
    """Tell whether a file claims to be a CD image, by its first 32,774 bytes."""
    return head[SYSTEM_AREA + 1 : SYSTEM_AREA + 1 + len(MAGIC)] == MAGIC


def read_iso(fd: int, size: int) -> Iso:
    """Read the directories of a CD image and find the live system's files.

    Args:
        fd: of the CD image.
        size: its bytes.

    Raises:
        FormatError: it is damaged, or says what cannot be.
    """
    # 25 ms that nothing but a CD image needs.
    from pycdlib import PyCdlib  # noqa: PLC0415
    from pycdlib.pycdlibexception import PyCdlibException  # noqa: PLC0415

    file = _Limited(fd, size)
    iso = PyCdlib()
    try:
        iso.open_fp(cast(BinaryIO, file))
        return _describe(iso, size)
    except FormatError:
        raise
    except Exception as err:
        # Of a damaged image pycdlib raises IndexError, KeyError, struct.error and others, too.
        if file.exceeded and iso.eltorito_boot_catalog is None and iso.pvds:
            # Not a CD to boot from: a file system with more in it than any live CD has.
            return Iso(_text(iso.pvd.volume_identifier), "ISO 9660", boots=False, images=())
        said = str(err) if isinstance(err, PyCdlibException) else f"damaged ({type(err).__name__})"
        raise FormatError(
            f"its directories cannot be read: {file.exceeded or said}",
            hint="fetch it again; or mount it, and seed the file in it that is the image",
        ) from err


class _Limited:
    """A file of which only so much can be read.

    Attributes:
        exceeded: which limit was, or "" where none.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.exceeded = ""
        self._fd = fd
        self._size = size
        self._at = 0
        self._left = MAX_DIRECTORIES
        self._deadline = time.monotonic() + MAX_SECONDS

    def read(self, length: int = -1) -> bytes:
        length = self._size if length < 0 else length
        if length > MAX_READ:
            self._exceed(f"one of them is longer than {MAX_READ} bytes")
        if length > self._left:
            self._exceed(f"they are longer than {MAX_DIRECTORIES} bytes")
        if time.monotonic() > self._deadline:
            self._exceed(f"that takes longer than {MAX_SECONDS:.0f} s")
        self._left -= length
        data = os.pread(self._fd, length, self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a place before the start of the file")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def _exceed(self, what: str) -> NoReturn:
        self.exceeded = what
        raise OSError(what)


@dataclass(frozen=True, slots=True)
class _View:
    """One of the directory trees of a CD, and what its files are called there."""

    names: str
    root: DirectoryRecord
    name_of: Callable[[DirectoryRecord], str]

    def entries(self, folder: DirectoryRecord) -> Iterator[tuple[str, DirectoryRecord]]:
        """The entries of a folder; of a file of several extents, the first one's."""
        known = set()
        for record in folder.children:
            name = self.name_of(record)
            if name not in known and not record.is_dot() and not record.is_dotdot():
                known.add(name)
                yield name, record

    def images(self) -> list[tuple[str, DirectoryRecord]]:
        """What makes up the live system, with its path on the CD, from base to top."""
        for place, pattern in _PLACES:
            found = {
                name.lower(): (f"{folder_name}/{name}", record)
                for folder_name, folder in self.entries(self.root)
                if folder.is_dir() and folder_name.lower() == place
                for name, record in self.entries(folder)
                if not record.is_dir() and pattern.fullmatch(name.lower())
            }
            if found:
                # knoppix, knoppix2, knoppix10
                return [found[name] for name in sorted(found, key=lambda name: (len(name), name))]
        return []


def _views(iso: PyCdlib) -> Iterator[_View]:
    """The trees of a CD, the one with the fullest names first, as Linux prefers them."""
    primary = iso.pvd.root_directory_record()
    if iso.has_rock_ridge():
        yield _View("Rock Ridge", primary, _rock_ridge_name)
    if iso.joliet_vd is not None:
        yield _View("Joliet", iso.joliet_vd.root_directory_record(), _joliet_name)
    yield _View("ISO 9660", primary, _plain_name)


def _rock_ridge_name(record: DirectoryRecord) -> str:
    return "" if record.rock_ridge is None else _text(record.rock_ridge.name())


def _joliet_name(record: DirectoryRecord) -> str:
    return _text(record.file_identifier(), "utf-16-be").partition(";")[0]


def _plain_name(record: DirectoryRecord) -> str:
    """Without the version and the dot of an empty extension (ECMA-119, 7.5)."""
    return _text(record.file_identifier()).partition(";")[0].rstrip(".")


def _text(data: bytes, encoding: str = "utf-8") -> str:
    """Bytes of a CD as one line of text."""
    text = data.decode(encoding, "replace").strip()
    return "".join(char if char.isprintable() else "?" for char in text)


def _describe(iso: PyCdlib, size: int) -> Iso:
    volume, boots = _text(iso.pvd.volume_identifier), iso.eltorito_boot_catalog is not None
    claimed = iso.pvd.space_size * iso.pvd.logical_block_size()
    views = list(_views(iso))
    for view in views:
        if found := view.images():
            images = [IsoFile(name, _extents(name, record, iso, size)) for name, record in found]
            _check(images, size, claimed)
            return Iso(volume, view.names, boots, tuple(images))
    return Iso(volume, views[0].names, boots, ())


def _extents(name: str, first: DirectoryRecord, iso: PyCdlib, size: int) -> Extents:
    """Where a file lies. One above 4 GiB has a directory record for each extent."""
    extents: list[tuple[int, int]] = []
    record: DirectoryRecord | None = first
    while record is not None:
        if record.file_unit_size or record.interleave_gap_size:
            raise FormatError(f"{name} is interleaved with other files, which is not read")
        offset = (record.extent_location() + record.xattr_len) * iso.pvd.logical_block_size()
        length = record.get_data_length()
        if offset < SYSTEM_AREA or length < 0 or offset + length > size:
            raise FormatError(f"{name} lies outside the {size} bytes of the file", hint=_AGAIN)
        extents.append((offset, length))
        if len(extents) > MAX_EXTENTS:
            raise FormatError(f"{name} lies in more than {MAX_EXTENTS} extents")
        record = record.data_continuation
    return Extents(extents)


def _check(images: list[IsoFile], size: int, claimed: int) -> None:
    """Compare the places of files with each other, and with the end of the CD image.

    Raises:
        FormatError: one is empty, they overlap, or the CD image ends within one.
    """
    taken: list[tuple[int, int, str]] = []
    for image in images:
        if not image.extents.size:
            raise FormatError(f"{image.name} is empty")
        if image.extents.end == size < claimed:
            # pycdlib lets a file end where the CD image does.
            raise FormatError(f"it is cut off: it has {size} of {claimed} bytes", hint=_AGAIN)
        taken += [(offset, offset + length, image.name) for offset, length in image.extents]
    taken.sort()
    for (_, end, first), (start, _, second) in pairwise(taken):
        if start < end:
            raise FormatError(f"{first} and {second} overlap", hint=_AGAIN)
