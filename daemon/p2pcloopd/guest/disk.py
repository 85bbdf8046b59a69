"""What a guest's disks are made of, and which parts are prefetched."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import GuestError, MismatchError, UsageError
from p2pcloop.formats.filesystem import (
    PARTITION_TABLES,
    PROBE_SIZE,
    READ_ONLY_TYPES,
    ROOT_HINT,
    ROOT_TYPES,
    describe,
    detect_filesystem,
    overlay_mode,
)
from p2pcloop.formats.overlay import Overlay
from p2pcloop.formats.partitions import boots_by_uefi_alone
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import expected_touches
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE, format_size
from p2pcloop.words import tr
from p2pcloopd.block.spec import MIN_FILES_SIZE, TEMPORARY, BlockServerSpec, FilesOverlay
from p2pcloopd.guest.system.files_root import WHOLE
from p2pcloopd.guest.vm import Firmware, Vm

DEFAULT_FILES_SIZE = 8 << 30
"""Bytes of a new files overlay; it takes disk space only for what is written."""


def choose_files(
    target: ImageFile | StoredRef,
    overlay: Path | None,
    asked: str | None,
    size: int | None,
    home: Home,
    *,
    whole_disk: bool = False,
) -> FilesOverlay | None:
    """Tell whether a guest's changes are kept as files, on a second device; None: as blocks.

    The mode is that of the existing overlay, else what the user asked for, else "files" if the
    image's file system cannot be written. Nothing is made or changed.

    Args:
        asked: "block" or "files", the user's word, or None.
        size: bytes of the device if it has to be made; None for `DEFAULT_FILES_SIZE`.
        whole_disk: it boots by its own boot loader, which knows nothing of a second device.

    Raises:
        MismatchError: the existing overlay has another mode than the user asked for.
        UsageError: this image cannot have such an overlay, or not one of this size.
        GuestError: the image holds no root for a guest.
        P2pcloopError: its content cannot be read.
    """
    if overlay is not None and overlay.exists():
        mode = _mode_of(overlay, asked)
    elif whole_disk:
        mode = "block"
    else:
        mode = _mode_for(target, asked, home)
    if whole_disk and "files" in (mode, asked):
        raise UsageError(
            "a disk that boots by its own boot loader keeps changed blocks alone",
            hint="leave out --overlay-mode, and give a new overlay",
        )
    _check_size_counts(overlay, mode, size)
    if mode == "block":
        return None
    size = DEFAULT_FILES_SIZE if size is None else size
    if not MIN_FILES_SIZE <= size <= MAX_IMAGE_SIZE:
        raise UsageError(
            tr("a files overlay cannot have {size}", size=format_size(size)),
            hint=tr(
                "give {min_files_size}M to {max_image_size}T",
                min_files_size=MIN_FILES_SIZE >> 20,
                max_image_size=MAX_IMAGE_SIZE >> 40,
            ),
        )
    return FilesOverlay(size - size % BLOCK_SIZE)


def choose_firmware(
    target: ImageFile | StoredRef, vm: Vm, asked: Firmware | None, home: Home
) -> Firmware | None:
    """Tell which firmware boots an image by its own boot loader; None: a kernel of ours boots it.

    An image is a whole disk if it begins with a partition table.

    Args:
        asked: the user's word, or None.

    Raises:
        UsageError: firmware was asked for, and the image is no whole disk.
        P2pcloopError: its content cannot be read.
    """
    if vm != "qemu":
        return None
    found = file_system_of(target, home)
    if found is None:  # an overlay, which the block server refuses
        return asked
    if found not in PARTITION_TABLES:
        if asked is None:
            return None
        raise UsageError(
            tr(
                "{target} is no whole disk, but {found}: firmware finds no boot loader",
                target=target.name,
                found=describe(found),
            ),
            hint="leave out --firmware: a kernel of this system boots it; or seed the whole disk"
            " (`p2pcloop seed --raw`)",
        )
    if asked is not None:
        return asked
    start = (
        _read_stored_start(target, home) if isinstance(target, StoredRef) else _read_start(target)
    )
    return "uefi" if boots_by_uefi_alone(start) else "bios"


def _check_size_counts(overlay: Path | None, mode: str, size: int | None) -> None:
    """Refuse a size that would be ignored."""
    if size is None:
        return
    if mode == "block":
        raise UsageError(
            "an overlay of blocks is as large as its image: --overlay-size says nothing",
            hint="leave it out, or add --overlay-mode files",
        )
    if overlay is None or not overlay.exists():
        return
    kept = Overlay.inspect(overlay).image_size
    if size - size % BLOCK_SIZE != kept:
        raise UsageError(
            tr(
                "{overlay} exists, has {kept}, and keeps that: --overlay-size is for a new one",
                overlay=overlay,
                kept=format_size(kept),
            ),
            hint="leave it out, or give another file name to start anew",
        )


def _mode_of(overlay: Path, asked: str | None) -> str:
    # The image's content does not matter: the overlay's blocks may hold a file system of their own.
    mode = Overlay.inspect(overlay).mode
    if asked not in (None, mode):
        raise MismatchError(
            tr("{overlay} is an overlay of mode {mode}, and keeps it", overlay=overlay, mode=mode),
            hint="leave out --overlay-mode, or give another file name to start anew",
        )
    return mode


def _mode_for(target: ImageFile | StoredRef, asked: str | None, home: Home) -> str:
    found = file_system_of(target, home)
    if found is None:
        return asked or "block"  # the guest finds out
    name = str(target.name)
    if found in PARTITION_TABLES:
        raise GuestError(
            tr(
                "{name} cannot boot in User-Mode Linux: it is a whole disk ({found})",
                name=name,
                found=describe(found),
            ),
            hint="`--vm qemu` boots it by its own boot loader; or give its root alone: leave out"
            " --raw, or --partition N",
        )
    if found not in ROOT_TYPES:
        raise GuestError(
            tr("{name} cannot boot: it holds {found}", name=name, found=describe(found)),
            hint=ROOT_HINT,
        )
    several = len(layer_places(target)) > 1
    if asked == "block" and (several or found in READ_ONLY_TYPES):
        what = (
            tr("several file systems, to be joined")
            if several
            else tr("{found}, which cannot be written", found=found)
        )
        raise UsageError(
            tr("{name} holds {what}: an overlay of blocks is of no use", name=name, what=what),
            hint="leave out --overlay-mode, or give `files`",
        )
    return asked or ("files" if several else overlay_mode(found))


def file_system_of(target: ImageFile | StoredRef, home: Home) -> str | None:
    """The image's file system, or None where it is not known here.

    Raises:
        P2pcloopError: its content cannot be read.
    """
    if isinstance(target, StoredRef):
        told = target.signed.manifest.boot.root_type
        return told or detect_filesystem(_read_stored_start(target, home))
    if target.kind == "overlay":
        return None  # the block server says what to do with it
    return detect_filesystem(_read_start(target))


def _read_start(target: ImageFile) -> bytes:
    from p2pcloop.making.pack import read_start  # noqa: PLC0415  for local files

    return read_start(target, PROBE_SIZE)


def _read_stored_start(target: StoredRef, home: Home) -> bytes:
    """Fetch the first bytes of a device whose manifest does not name its file system."""
    # Few images need this.
    from io import BufferedReader  # noqa: PLC0415

    from p2pcloop.client.open_stored import Source  # noqa: PLC0415
    from p2pcloop.image.device import ImageDevice  # noqa: PLC0415
    from p2pcloop.image.reader import DeviceReader  # noqa: PLC0415

    source = Source(target, home)
    with closing(source.open()) as image:
        return BufferedReader(DeviceReader(ImageDevice(image), source.supply)).read(PROBE_SIZE)


def disk_of(
    target: ImageFile | StoredRef,
    overlay: Path | None,
    home: Home,
    *,
    prefetch: bool,
    fill: int,
    files: FilesOverlay | None = None,
    resumes: bool = False,
) -> BlockServerSpec:
    """Return what the block server of a guest is to serve, without the place where it listens.

    Args:
        overlay: the file that keeps the changes; None: they are lost with the guest.
        prefetch: prefetch by the image's profile, and record one.
        fill: see `BlockServerSpec`; -1 for not at all.
        files: see `BlockServerSpec`.
        resumes: the guest is resumed from the image, a state; else it boots.

    Raises:
        StorageError: the profile could not be read.
    """
    image = target if isinstance(target, ImageFile) else target.signed
    spec = BlockServerSpec(
        home, image, overlay or TEMPORARY, for_guest=True, record_touches=prefetch, files=files
    )
    if isinstance(target, ImageFile):
        return spec
    manifest = target.signed.manifest
    touches = expected_touches(home, manifest, boots=not resumes) if prefetch else ()
    rate = None if fill < 0 else fill
    # The profile of a state is that of a resume: a boot does not replace it.
    records = prefetch and (resumes or manifest.machine is None)
    spec = replace(spec, record_touches=records)
    return replace(spec, secret=target.secret, profile=touches, fill=rate)


def layer_places(target: ImageFile | StoredRef) -> tuple[str, ...]:
    """Return the places of the root's layers on their device; see `build_files_initramfs`."""
    if isinstance(target, StoredRef):
        roots = target.signed.manifest.boot.roots
    else:
        from p2pcloop.making.pack import device_roots  # noqa: PLC0415  for local files

        roots = () if target.kind == "overlay" else device_roots(target)
    return tuple(f"{root.offset}{'/upper' if root.changes else ''}" for root in roots) or WHOLE


def size_of(target: ImageFile | StoredRef) -> int:
    """Bytes of the image's device."""
    if isinstance(target, ImageFile):
        from p2pcloop.making.pack import device_size  # noqa: PLC0415  for local files

        return device_size(target)
    return target.signed.manifest.size
