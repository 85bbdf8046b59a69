"""`p2pcloop export --iso`: a live CD again, with the changes in it."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from p2pcloop.cli.image_output import (
    THE_DISK,
    Output,
    replacing,
    write_device,
    write_image,
)
from p2pcloop.cli.new_file import take_place
from p2pcloop.client.fetch import verify_layer
from p2pcloop.client.joined_root import open_joined_root
from p2pcloop.client.overlay_base import open_overlay_on
from p2pcloop.client.progress import progress_bar, waiting_for
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import notify, say
from p2pcloop.errors import (
    CorruptError,
    NeedsPackageError,
    UsageError,
    storage_error,
)
from p2pcloop.formats.cloop_writer import CloopForm
from p2pcloop.formats.filesystem import PROBE_SIZE
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.reader import DeviceReader
from p2pcloop.making.cd import LiveCd, form_on_cd, open_cd, starts_as_cd, write_cd
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.pack import device_roots, odd_length
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr

_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class IsoExport:
    """What is written as a CD.

    Attributes:
        output: where to; a file. Its form is that of the image on the CD, where the user chose one.
        target: the image; all of it is here.
        overlay: its changes, or None.
        cd: the CD whose other files are taken; None for the one that the image was made of.
        home: of the node.
        quiet: show no progress.
    """

    output: Output
    target: ImageFile | StoredRef
    overlay: Path | None
    cd: Path | None
    home: Home
    quiet: bool


def check_iso(output: Output) -> None:
    """Refuse a place where no CD image is written."""
    if output.kind != "file":
        raise UsageError(
            tr("{output} is no file, and a CD is written to a file", output=output.name),
            hint="write it there, and copy that (`dd`, `wodim`)",
        )
    if shutil.which("xorriso") is None:  # told before the image is made
        raise NeedsPackageError("a CD is written by xorriso", hint="apt install xorriso")


def export_iso(
    wanted: IsoExport, image: MergedImage, supply: Callable[[Missing], None], *, as_json: bool
) -> None:
    """Write the CD, and tell what was written.

    Raises:
        UsageError: it was not made of a CD, or its changes cannot be put onto one.
        MismatchError: the overlay was made on another image.
        CorruptError: the CD that is here is damaged.
        NeedsPackageError: xorriso, or mksquashfs where the image is a squashfs, is missing.
        GuestError: changed files could not be joined with the image's.
        StorageError: there is no room, or the disk refused.
    """
    cd = _find_cd(wanted)
    _check_whole(wanted)
    out = wanted.output.path
    if _is_unchanged(wanted):
        notify("there are no changes: the CD is as it was")
        _copy(cd.path, out, quiet=wanted.quiet)
    else:
        with wanted.home.staging() as folder:  # it goes even if this process is killed
            made, part = folder / "cd", folder / "image"
            _write_part(wanted, cd, part, image, supply)
            with progress_bar(tr("writing the CD"), quiet=wanted.quiet) as progress:
                write_cd(cd, part, made, progress)
            part.unlink()
            _move(made, out, quiet=wanted.quiet)
    _report(wanted, cd, as_json=as_json)


def _check_whole(wanted: IsoExport) -> None:
    """Compare a stored CD with its hashes: its boot files are read past the image's chunks.

    Raises:
        CorruptError: some of it is damaged; that is dropped.
    """
    target = wanted.target
    if wanted.cd is not None or not isinstance(target, StoredRef):
        return
    answer = verify_layer(target, target.signed.manifest.layers[0], quiet=wanted.quiet)
    if answer["bad"]:
        raise CorruptError(
            tr(
                "{bad} of {pieces} pieces of the CD were damaged and dropped",
                bad=len(answer["bad"]),
                pieces=answer["pieces"],
            ),
            hint="export it again: they are fetched first",
        )


def _copy(cd: Path, out: Path, *, quiet: bool) -> None:
    with replacing(out) as file, cd.open("rb") as source:
        with progress_bar(tr("copying"), quiet=quiet) as progress:
            progress(0, cd.stat().st_size)
            while data := source.read(_STEP):
                file.write(data)
                progress(file.tell())


def _move(made: Path, out: Path, *, quiet: bool) -> None:
    """Have a file of the home be OUT, which may lie on another file system."""
    try:
        with made.open("rb") as file, waiting_for(THE_DISK):
            os.fsync(file.fileno())
        take_place(made, out)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise storage_error(tr("cannot write {path}", path=out), err) from err
        _copy(made, out, quiet=quiet)


def _find_cd(wanted: IsoExport) -> LiveCd:
    if wanted.cd is not None:
        return open_cd(wanted.cd, wanted.cd)
    target = wanted.target
    name = Path(str(target.name))
    if isinstance(target, StoredRef):
        lowest = target.signed.manifest.layers[0]
        packs = (wanted.home.torrents / lowest.torrent.hex()).glob("data/*/pack")
        path = None if target.signed.manifest.private else next(packs, None)
    else:
        path = target.name
    if path is None or not starts_as_cd(path):
        raise UsageError(
            tr(
                "{name} was not seeded from a CD as it lies: its boot files are not known",
                name=name,
            ),
            hint="name the CD whose boot files to take: --cd FILE.iso",
        )
    return open_cd(path, name)


def _is_unchanged(wanted: IsoExport) -> bool:
    chosen = isinstance(wanted.output.form, CloopForm)  # by an option
    if chosen or wanted.overlay is not None or wanted.cd is not None:
        return False
    target = wanted.target
    return isinstance(target, ImageFile) or len(target.signed.manifest.layers) == 1


def _write_part(
    wanted: IsoExport,
    cd: LiveCd,
    part: Path,
    image: MergedImage,
    supply: Callable[[Missing], None],
) -> None:
    """Write the file that takes the image's place on the CD."""
    chosen = wanted.output.form
    form = chosen if isinstance(chosen, CloopForm) else form_on_cd(cd)
    mode = _checked_mode(wanted.overlay, image, wanted.home)
    output = replace(wanted.output, name=part, path=part, form=form or "raw")
    if mode == "files" or _is_joined(wanted.target):
        start = io.BufferedReader(DeviceReader(ImageDevice(image), supply)).read(PROBE_SIZE)
        notify("joining the image and the changed files, in a guest")
        opened = open_joined_root(
            wanted.target, wanted.overlay, start, wanted.home, quiet=wanted.quiet
        )
        with opened as (root, size), progress_bar("writing", quiet=wanted.quiet) as progress:
            progress(0, size)
            write_image(_sized(output, size), root, size, progress)
        return
    device = open_device(wanted.target, image, wanted.overlay, wanted.home)
    try:
        write_device(_sized(output, device.size), device, supply, quiet=wanted.quiet)
    finally:
        device.close()


def open_device(
    target: ImageFile | StoredRef, image: MergedImage, overlay: Path | None, home: Home
) -> ImageDevice:
    """The device of an image, as an overlay of blocks changed it.

    Raises:
        MismatchError: the overlay was made on another image, or holds files.
    """
    changes = None
    if overlay is not None:
        changes = open_overlay_on(overlay, home, image_id=image.image_id, read_only=True)
    if isinstance(target, StoredRef):
        length = target.signed.manifest.disk_length
    else:
        length = odd_length(target)
    return ImageDevice(image, changes, length=length)


def _checked_mode(overlay: Path | None, image: MergedImage, home: Home) -> str | None:
    """The overlay's mode; nothing is begun for one of another image."""
    if overlay is None:
        return None
    with open_overlay_on(overlay, home, image_id=image.image_id, read_only=True, mode=None) as held:
        return held.info().mode


def _sized(output: Output, size: int) -> Output:
    form = output.form
    return replace(output, form=form.for_size(size)) if isinstance(form, CloopForm) else output


def _is_joined(target: ImageFile | StoredRef) -> bool:
    """Whether the root is of several file systems on its device."""
    if isinstance(target, StoredRef):
        return bool(target.signed.manifest.boot.roots)
    return bool(device_roots(target))


def _report(wanted: IsoExport, cd: LiveCd, *, as_json: bool) -> None:
    out = wanted.output
    stored = out.path.stat().st_size
    image = cd.images[0].name
    if as_json:
        click.echo(to_json({"file": str(out.name), "stored": stored, "image": image}))
        return
    say(
        tr(
            "{out}: {stored}, a CD with the image as {image}",
            out=out.name,
            stored=format_size(stored),
            image=image,
        )
    )
    say(tr("try it with:\n  qemu-system-x86_64 -m 2G -cdrom {out}", out=out.name))
