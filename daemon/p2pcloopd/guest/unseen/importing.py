"""Makes a files overlay of the writable layer of another union file system: what users of live CDs
keep beside the CD (docs/knoppix.md).

An unseen guest applies the layer to the image, by means of its own overlayfs. So this machine
mounts nothing and needs no rights, a stranger's file system is read by a kernel in a sandbox alone,
and what aufs and other kernels noted becomes what guests of p2pcloop understand.

Disks: /dev/vda is the image, /dev/vdb the new overlay, /dev/vdc what is imported: a file system, or
a tar file of a directory. /dev/vdd is empty; /dev/vde is for the guest's work and its answer.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from p2pcloop.client.progress import growth_bar, progress_bar
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import notify
from p2pcloop.errors import GuestError, MismatchError, UsageError, storage_error
from p2pcloop.formats.filesystem import PROBE_SIZE, ROOT_TYPES, describe, detect_filesystem
from p2pcloop.formats.named import sync_names
from p2pcloop.formats.overlay import Overlay
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import never_missing
from p2pcloop.image.reader import DeviceReader
from p2pcloop.image.zeros import files_device
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import inspect_file
from p2pcloop.making.pack import read_start
from p2pcloop.store.home import Home
from p2pcloop.store.overlays import register_overlay
from p2pcloop.text import printable
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE
from p2pcloop.words import tr
from p2pcloopd.block.spec import BlockServerSpec, FilesOverlay
from p2pcloopd.guest.disk import DEFAULT_FILES_SIZE, disk_of, layer_places
from p2pcloopd.guest.system.files_root import LAYERS
from p2pcloopd.guest.system.host_program import host_program
from p2pcloopd.guest.system.initramfs import Part, make_initramfs
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.unseen.guests import empty_image, run_unseen
from p2pcloopd.guest.unseen.union_tree import UnionTree, layer_of

_APPLETS = ("dmesg", "find", "grep", "mv", "stat", "sync", "tail", "umount", "wc", "xargs")
_CANNOT_BOOT = "the guest cannot boot: "
_DIRECTORY_HINT = tr(
    "boot the live system with it and give the directory there (KNOPPIX: /KNOPPIX-DATA), or mount"
    " it here and give the mount point"
)


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has put into an overlay.

    Attributes:
        files: files, links and devices.
        directories: those on the way to them included.
        deleted: names that are deleted from the image.
        replaced: directories that hide what the image has there.
    """

    files: int
    directories: int
    deleted: int
    replaced: int


@dataclass(frozen=True, slots=True)
class Import:
    """What is imported, and where to.

    Attributes:
        source: a file or block device with a file system, or a directory.
        target: the image that it was made on.
        overlay: the file to make; it must not exist.
        size: bytes of the overlay's device, or None for what suits the source.
        home: of the node.
        quiet: show no progress.
    """

    source: ImageFile | Path
    target: ImageFile | StoredRef
    overlay: Path
    size: int | None
    home: Home
    quiet: bool


def check_source(file: ImageFile) -> None:
    """Refuse what holds no layer that can be read, and say what to do.

    Raises:
        UsageError: it is encrypted, holds another file system or a whole system, or is an overlay.
    """
    if file.kind in ("overlay", "profile"):
        raise UsageError(
            tr(
                "{file} is {what} of p2pcloop",
                file=file.name,
                what=tr("an overlay") if file.kind == "overlay" else tr("a profile"),
            ),
            hint="boot it with --overlay, or publish it: there is nothing to import",
        )
    found = detect_filesystem(read_start(file, PROBE_SIZE))
    if len(file.parts) > 1:
        raise UsageError(
            tr("{file} is a CD with several images, a whole system", file=file.name),
            hint="`p2pcloop seed` serves it as it lies; of a remaster give the file beside KNOPPIX",
        )
    if found == "crypto_LUKS":
        raise UsageError(
            tr("{file} is encrypted (LUKS)", file=file.name),
            hint="open it (`sudo cryptsetup open FILE data`), and give /dev/mapper/data",
        )
    if not found or file.name.suffix == ".aes":
        raise UsageError(
            tr(
                "{file} holds no file system that is known; it may be encrypted, as"
                " knoppix-data.aes is",
                file=file.name,
            ),
            hint=tr(
                "no key leaves the live system: {directory_hint}", directory_hint=_DIRECTORY_HINT
            ),
        )
    if found not in ROOT_TYPES:
        raise UsageError(
            tr("{file} holds {found}, which no guest reads", file=file.name, found=describe(found)),
            hint=_DIRECTORY_HINT,
        )


def import_layer(wanted: Import) -> Imported:
    """Make the overlay. It appears whole, or not at all.

    Raises:
        UsageError, StorageError: the source cannot be read; see `check_source` and `UnionTree`.
        MismatchError: the overlay exists.
        GuestError: the guest could not read the source, or apply it.
        P2pcloopError: as for boots.
    """
    kind = "tar" if isinstance(wanted.source, Path) else "files"
    with _as_file(wanted) as file, _hidden(wanted.overlay) as hidden, _answer(wanted) as answer:
        size = _overlay_size(wanted, file)
        disks = [
            _disk(wanted.target, hidden, wanted.home, FilesOverlay(size)),
            _disk(file, None, wanted.home, None),
            _disk(*answer, wanted.home, FilesOverlay(max(size, _whole_blocks(file.size * 2)))),
        ]
        build = partial(_initramfs, kind=kind, places=layer_places(wanted.target))
        try:
            with growth_bar("importing", hidden, quiet=wanted.quiet):
                run_unseen(disks, build)
        except GuestError as err:
            raise _plain(err, wanted.source) from err
        imported = _read_answer(answer[1])
        try:
            os.link(hidden, wanted.overlay)
        except FileExistsError as err:
            raise already_there(wanted.overlay) from err
        sync_names(wanted.overlay.parent)
    if isinstance(wanted.target, StoredRef):
        register_overlay(wanted.home, wanted.overlay, wanted.target.signed.id)
    return imported


def already_there(overlay: Path) -> MismatchError:
    """The error for an overlay that exists."""
    return MismatchError(
        tr("{overlay} exists already, and an import makes a new overlay", overlay=overlay),
        hint="give another name to --overlay",
    )


def _initramfs(kernel: Kernel, *, kind: str, places: Sequence[str]) -> bytes:
    joined = Part(steps=("joined-root",), settings={"PLACES": " ".join(places)})
    work = Part(steps=("close-overlay", "import"), applets=_APPLETS, settings={"KIND": kind})
    return make_initramfs(kernel, LAYERS, joined, host_program("tar", "tar"), work)


def _disk(
    target: ImageFile | StoredRef, overlay: Path | None, home: Home, files: FilesOverlay | None
) -> BlockServerSpec:
    return disk_of(target, overlay, home, prefetch=False, fill=-1, files=files)


@contextmanager
def _as_file(wanted: Import) -> Iterator[ImageFile]:
    """The source as a disk: a directory as a tar file."""
    if isinstance(wanted.source, ImageFile):
        yield wanted.source
        return
    top = layer_of(wanted.source)
    if top != wanted.source:
        notify(tr("{top} is taken, the layer of an overlayfs", top=top))
    tree = UnionTree(top, _leave_out)
    with wanted.home.staging() as folder, (folder / "layer").open("wb") as file:
        pieces = tree.pack()
        try:
            with progress_bar("reading", quiet=wanted.quiet) as progress:
                for piece in pieces:
                    file.write(piece)
                    progress(file.tell())
            file.truncate(-(-file.tell() // BLOCK_SIZE) * BLOCK_SIZE)
            file.flush()
        except OSError as err:
            raise storage_error(tr("cannot write to {tmp}", tmp=wanted.home.tmp), err) from err
        if tree.deletions and os.geteuid() != 0:
            notify(
                "p2pcloop: only root sees which directories of an overlayfs replace those of the"
                " image; of those, files of the image will show again. Run it as root to be exact"
            )
        yield inspect_file(Path(file.name), raw=True)


@contextmanager
def _hidden(overlay: Path) -> Iterator[Path]:
    """A name beside the overlay's, which is free again at the end."""
    hidden = overlay.with_name(f".overlay-{secrets.token_hex(8)}")
    try:
        yield hidden
    finally:
        hidden.unlink(missing_ok=True)


@contextmanager
def _answer(wanted: Import) -> Iterator[tuple[ImageFile, Path]]:
    """An empty image, and the files overlay of the guest's work."""
    with wanted.home.staging() as folder:
        yield empty_image(folder), folder / "answer"


def _overlay_size(wanted: Import, file: ImageFile) -> int:
    """What the user asked for, or enough for a source that is packed."""
    size = wanted.size or max(DEFAULT_FILES_SIZE, 4 * file.size)
    return _whole_blocks(size)


def _whole_blocks(size: int) -> int:
    return min(size - size % BLOCK_SIZE, MAX_IMAGE_SIZE)


def _read_answer(path: Path) -> Imported:
    with Overlay.open(path, image_id=None, read_only=True, mode="files") as overlay:
        said = DeviceReader(files_device(overlay), never_missing).read(BLOCK_SIZE)
    return parse_answer(said or b"")


def parse_answer(said: bytes) -> Imported:
    """Read what the guest says that it did.

    Raises:
        GuestError: it says something else.
    """
    words = said.rstrip(b"\0").split()
    try:
        pairs = zip(words[::2], words[1::2], strict=True)
        return Imported(**{name.decode(): int(value) for name, value in pairs})
    except (ValueError, TypeError) as err:
        raise GuestError("the guest has not said what it did", hint="try again") from err


def _plain(err: GuestError, source: ImageFile | Path) -> GuestError:
    """The guest's error, in terms of the source."""
    name = source if isinstance(source, Path) else source.name
    why, hint = str(err).removeprefix(_CANNOT_BOOT), err.hint
    if "No space left" in why:
        hint = tr("give more to --overlay-size, or free some space here")
    elif str(err).startswith(_CANNOT_BOOT):
        hint = tr(
            "if its file system is damaged, repair a copy of it (`e2fsck -f COPY`); no file was"
        )
        hint += " made"
    return GuestError(
        tr("{name} cannot be imported: {why}", name=name, why=printable(why)), hint=hint
    )


def _leave_out(what: str) -> None:
    notify(tr("p2pcloop: left out {what}", what=printable(what)))
