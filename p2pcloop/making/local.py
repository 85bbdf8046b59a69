"""Opening a local image file (a cloop, a CD or a raw image), without a store or a daemon.

To make its index, the file is read once. The index is kept in a cache folder: a file of the same
path, size, time and inode number has the same content.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from p2pcloop.errors import BusyError, NotHereError, UsageError, storage_error
from p2pcloop.formats.cloop import HEADER_SIZE as CLOOP_HEADER_SIZE
from p2pcloop.formats.cloop import is_cloop
from p2pcloop.formats.containers import CONTAINERS, TAIL_SIZE, describe_other, detect_container
from p2pcloop.formats.filesystem import (
    NO_FILE_SYSTEM,
    PROBE_SIZE,
    check_whole,
    describe,
    detect_filesystem,
)
from p2pcloop.formats.index import open_index
from p2pcloop.formats.iso import is_iso
from p2pcloop.formats.overlay_header import MAGIC as OVERLAY_MAGIC
from p2pcloop.formats.profile import is_profile
from p2pcloop.image.content import LocalContent
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import DEFAULT_CACHE_SIZE, MergedImage
from p2pcloop.making.build import Progress
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.opened import OpenImage
from p2pcloop.making.parts import find_partition, find_parts
from p2pcloop.units import SECTOR_SIZE
from p2pcloop.words import tr


def inspect_file(path: Path, *, partition: int = 0, raw: bool = False) -> ImageFile:
    """Find out the kind of a file or block device, and its parts that are the image.

    Args:
        partition: of a disk, 0 for the one with the root.
        raw: take it, or the content of a container or a cloop, as a device, without looking at it.

    Raises:
        NotHereError: there is no such file.
        UsageError: it is not a file, or empty; it is known to be no image; or it is not clear
            which part of it is the image.
        BusyError: a device that is mounted for writing.
        FormatError: it is damaged or cut off.
    """
    return inspect_copy(path, None, (), partition=partition, raw=raw)


def inspect_copy(
    path: Path,
    given: Path | None,
    packed: tuple[str, ...],
    *,
    partition: int = 0,
    raw: bool = False,
) -> ImageFile:
    """`inspect_file` of an unpacked copy.

    Args:
        given: the user's file; None if `path` is that.
        packed: see `ImageFile`.
    """
    name = given or path
    try:
        # Check this before it is opened: to open a FIFO waits for a writer.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise UsageError(
                tr("{name} is not a file: a regular one or a block device is needed", name=name)
            )
        with path.open("rb") as file:
            found = ImageFile(
                path.resolve(),
                "raw",
                os.lseek(file.fileno(), 0, os.SEEK_END),
                given=given and given.resolve(),
                packed=packed,
                is_device=stat.S_ISBLK(mode),
            )
            _check_use(found, name, partition, raw=raw)
            found = _identify(found, file.fileno(), partition, raw=raw)
    except FileNotFoundError as err:
        raise NotHereError(
            tr("there is no file {name}", name=name), hint="give the path of a file that is here"
        ) from err
    except OSError as err:
        raise UsageError(tr("{name} cannot be read: {why}", name=name, why=err.strerror)) from err
    if partition and found.kind not in ("disk", *CONTAINERS):
        raise UsageError(tr("{name} has no partitions", name=name), hint="leave out --partition")
    if found.kind in ("cloop", "iso", "disk"):
        with OpenImage(found.path, found.parts, found.name) as image:
            image.check_whole()
    return found


def _check_use(file: ImageFile, name: Path, partition: int, *, raw: bool) -> None:
    """Refuse a file that cannot be used so, whatever it holds; see `inspect_file`."""
    if not file.size:
        raise UsageError(tr("{name} is empty: an image holds at least one byte", name=name))
    if raw and partition:
        raise UsageError("--raw takes the whole disk, --partition a part of it")
    if file.is_device and (where := _written_at(file.path)):
        raise BusyError(
            tr(
                "{name} is mounted at {where} and may be written while it is read",
                name=name,
                where=where,
            ),
            hint="unmount it, mount it read-only, or take a snapshot (LVM)",
        )


_MOUNTS = Path("/proc/self/mountinfo")


def _written_at(device: Path) -> str:
    """The mount point of a block device that is mounted for writing, or "" (proc(5), mountinfo)."""
    try:
        mounts = os.fsdecode(_MOUNTS.read_bytes()).split("\n")[:-1]
    except OSError:
        return ""
    number = device.stat().st_rdev
    for mount in mounts:
        # Names may hold any white space but a line feed, a tab and a space, which are escaped.
        fields, _, of_system = mount.partition(" - ")
        _, _, numbers, _, where, *_ = fields.split(" ")
        _, source, options = of_system.split(" ", 2)
        same = numbers == f"{os.major(number)}:{os.minor(number)}" or source == str(device)
        if same and "rw" in options.split(","):
            return where
    return ""


def _identify(file: ImageFile, fd: int, partition: int, *, raw: bool) -> ImageFile:
    """Find out its kind. The order matters: one kind may look like another."""
    head = os.pread(fd, PROBE_SIZE, 0)
    tail = os.pread(fd, TAIL_SIZE, max(0, file.size - TAIL_SIZE))
    if head.startswith(OVERLAY_MAGIC):
        return replace(file, kind="overlay")
    if is_cloop(head, tail[-CLOOP_HEADER_SIZE:]) and not is_iso(head):
        return replace(file, kind="cloop")
    if raw:
        return replace(file, kind=detect_container(head, tail) or "raw")
    if is_profile(head):
        return replace(file, kind="profile")
    if is_iso(head):
        parts, notes = find_parts(fd, file.size, file.name)
        return replace(file, kind="iso", inside=parts, notes=notes)
    if container := detect_container(head, tail):
        return replace(file, kind=container)
    holds = detect_filesystem(head)
    if holds in ("gpt", "dos"):
        part = find_partition(fd, file.size, partition, file.name)
        return replace(file, kind="disk", inside=(part,))
    check_whole(head, file.size, str(file.name))
    if holds in NO_FILE_SYSTEM:
        return replace(file, doubt=tr("it is {holds}", holds=describe(holds)))
    return file if holds else _doubtful(file, head, tail)


def _doubtful(file: ImageFile, head: bytes, tail: bytes) -> ImageFile:
    what, hint = describe_other(head, tail)
    if what:
        raise UsageError(
            tr("{file} is no disk image: it is {what}", file=file.name, what=what), hint=hint
        )
    if file.size < SECTOR_SIZE:
        return replace(
            file, doubt=tr("it has {size} bytes, and a sector of a disk has 512", size=file.size)
        )
    return replace(file, doubt=tr("it holds {describe}", describe=describe("")))


@contextmanager
def unchanged(file: ImageFile) -> Iterator[None]:
    """Read a file in this context, and check at its end that the file is the same as before.

    Raises:
        BusyError: it was written to or replaced meanwhile.
        StorageError: it cannot be read.
    """
    before = _facts(file.path)
    yield
    if _facts(file.path) != before:
        raise BusyError(
            tr("{file} was written to while it was read", file=file.name),
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
        progress: called with the bytes of the device that are read, if the index has to be made.
        cache_size, spill: see `MergedImage`.

    Raises:
        UsageError: it is an overlay, or a cloop whose blocks are no multiple of 4 KiB.
        FormatError: it is damaged.
        StorageError: the disk refused.
    """
    if file.kind == "overlay":
        raise UsageError(
            tr("{file} is an overlay, not an image", file=file.name),
            hint="`p2pcloop info` names the image that it was made on: give that; boot, run, "
            "block and export take the overlay as --overlay",
        )
    if file.kind == "profile":
        raise UsageError(tr("{file} is a profile, not an image", file=file.name))
    try:
        if cache is None or file.is_device:  # a device has no stamp that shows a change
            index = make_index(file, progress)
        else:
            index = _cached_index(file, cache, progress)
    except OSError as err:
        raise storage_error(tr("cannot use {path}", path=err.filename or file.path), err) from err
    layer = Layer(LocalContent(file.path, index), open_index(index))
    return MergedImage([layer], cache_size=cache_size, spill=spill)


def make_index(file: ImageFile, progress: Progress) -> bytes:
    """Return the index of an image file in place.

    Raises:
        UsageError: it cannot be used in place: its blocks are no multiple of 4 KiB, or it lies
            in several places of a CD image.
        FormatError: it is damaged.
    """
    with OpenImage(file.path, file.parts, file.name) as image:
        if why := image.why_not_in_place():
            raise UsageError(
                why,
                hint="seed it (`p2pcloop seed` repacks it), or unpack it first with "
                "extract_compressed_fs",
            )
        return image.index(file.size, progress)


def _cached_index(file: ImageFile, cache: Path, progress: Progress) -> bytes:
    """The kept index, if it is whole: its last 32 bytes are the SHA-256 of the rest."""
    # Compute the name before the file is read: a write meanwhile changes the name.
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
    """The name of an index in the cache: another one for another file or other content."""
    try:
        status = path.stat()
    except OSError as err:
        raise storage_error(tr("cannot look at {path}", path=path), err) from err
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def _cache_name(file: ImageFile) -> str:
    names = (part.name for part in file.inside)
    # For a copy, the stamp of the container: the copy is another file each time.
    facts = (str(file.name), *_facts(file.name), *file.packed, *names)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
