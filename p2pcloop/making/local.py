"""Opens an image file that lies here, a cloop, a CD or a raw image, without a store or a daemon.

Its index is made by reading it once; it is kept in a cache folder, since a file that has the same
place, size, time and inode number has the same content.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from p2pcloop.errors import BusyError, NotHereError, UsageError, storage_error
from p2pcloop.formats.cloop import HEADER_SIZE as CLOOP_HEADER_SIZE
from p2pcloop.formats.cloop import is_cloop
from p2pcloop.formats.extents import Extents
from p2pcloop.formats.filesystem import PROBE_SIZE
from p2pcloop.formats.index import open_index
from p2pcloop.formats.iso import is_iso
from p2pcloop.formats.overlay_header import MAGIC as OVERLAY_MAGIC
from p2pcloop.image.content import LocalContent
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import DEFAULT_CACHE_SIZE, MergedImage
from p2pcloop.making.build import Progress
from p2pcloop.making.opened import OpenImage
from p2pcloop.making.parts import Part, find_parts


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file and what it is.

    Attributes:
        path: absolute.
        kind: "cloop", "iso", "raw" or "overlay".
        size: bytes of the file.
        inside: of a CD image, what on it is the image.
    """

    path: Path
    kind: str
    size: int
    inside: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What in it is the image, from base to top: parts of a CD image, or all of the file."""
        return self.inside or (Part("", self.kind, Extents([(0, self.size)])),)


def inspect_file(path: Path) -> ImageFile:
    """Tell what a file is by its first and last bytes, and what on a CD image is the image.

    Raises:
        NotHereError: there is no such file.
        UsageError: it is not a file, or empty.
        FormatError: a CD image that is damaged.
    """
    try:
        # Before it is opened: opening a FIFO waits for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is not a file: a regular one is needed")
        with path.open("rb") as file:
            start = file.read(PROBE_SIZE)
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - CLOOP_HEADER_SIZE))
            end = file.read(CLOOP_HEADER_SIZE)
            inside = find_parts(path, file.fileno(), size) if is_iso(start) else ()
    except FileNotFoundError as err:
        raise NotHereError(
            f"there is no file {path}", hint="a name is written @key/label, a link magnet:?…"
        ) from err
    except OSError as err:
        raise UsageError(f"{path} cannot be read: {err.strerror}") from err
    if not start:
        raise UsageError(f"{path} is empty: an image holds at least one byte")
    if start.startswith(OVERLAY_MAGIC):
        kind = "overlay"
    elif inside:
        kind = "iso"
    else:
        kind = "cloop" if is_cloop(start, end) else "raw"
    return ImageFile(path.resolve(), kind, size, inside)


@contextmanager
def unchanged(file: ImageFile) -> Iterator[None]:
    """A file that is read in the context: what is made of it must be of one moment.

    Raises:
        BusyError: when the context ends: it was written to, or replaced, meanwhile.
        StorageError: it cannot be looked at.
    """
    before = _facts(file.path)
    yield
    if _facts(file.path) != before:
        raise BusyError(
            f"{file.path} was written to while it was read",
            hint="end what uses it, and try again",
        )


def open_local(
    file: ImageFile,
    cache: Path | None,
    progress: Progress,
    *,
    cache_size: int = DEFAULT_CACHE_SIZE,
    spill: Path | None = None,
) -> MergedImage:
    """Open an image file as an image of one layer.

    Args:
        file: a cloop, a CD or a raw image.
        cache: folder in which indexes are kept, or None.
        progress: is told how many bytes of the device are read, where the index has to be made.
        cache_size, spill: see `MergedImage`.

    Raises:
        UsageError: it is an overlay, or a cloop whose blocks are no multiple of 4 KiB.
        FormatError: it is damaged.
        StorageError: the disk refused.
    """
    if file.kind == "overlay":
        raise UsageError(
            f"{file.path} is an overlay, not an image",
            hint="name the image that it was made on, and the overlay with --overlay",
        )
    try:
        index = _cached_index(file, cache, progress) if cache else make_index(file, progress)
    except OSError as err:
        raise storage_error(f"cannot use {err.filename or file.path}", err) from err
    layer = Layer(LocalContent(file.path, index), open_index(index))
    return MergedImage([layer], cache_size=cache_size, spill=spill)


def make_index(file: ImageFile, progress: Progress) -> bytes:
    """Return the index of an image file as it lies.

    Raises:
        UsageError: it cannot be used as it lies: its blocks are no multiple of 4 KiB, or it lies
            in several places of a CD image.
        FormatError: it is damaged.
    """
    with OpenImage(file.path, file.parts) as image:
        if why := image.why_not_in_place():
            raise UsageError(
                why,
                hint="seed it (`p2pcloop seed` repacks it), or unpack it first with "
                "extract_compressed_fs",
            )
        return image.index(file.size, progress)


def _cached_index(file: ImageFile, cache: Path, progress: Progress) -> bytes:
    """What was kept, if it is whole: its last 32 bytes are the SHA-256 of the rest."""
    # Named before the file is read: what is written to it meanwhile gives it another name.
    place = cache / _cache_name(file)
    if place.exists():
        kept = place.read_bytes()
        if hashlib.sha256(kept[:-32]).digest() == kept[-32:]:
            return kept[:-32]
    index = make_index(file, progress)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.{os.getpid()}")
    temporary.write_bytes(index + hashlib.sha256(index).digest())
    temporary.replace(place)
    return index


def _facts(path: Path) -> tuple[int, ...]:
    """Others where a file is another one, or has other content."""
    try:
        status = path.stat()
    except OSError as err:
        raise storage_error(f"cannot look at {path}", err) from err
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def _cache_name(file: ImageFile) -> str:
    names = (part.name for part in file.inside)
    facts = (str(file.path), *_facts(file.path), *names)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
