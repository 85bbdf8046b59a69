"""`p2pcloop import`: what a live system keeps beside its CD becomes an overlay of the image."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import click

from p2pcloop.cli.options import SIZE, FilePath, at_option, file_options, home_option, json_option
from p2pcloop.client.image_file import open_image_file
from p2pcloop.client.refs import resolve_ref
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import log_to_stderr, say
from p2pcloop.errors import UsageError
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.text import printable, to_json
from p2pcloop.words import tr
from p2pcloopd.block.spec import MIN_FILES_SIZE
from p2pcloopd.guest.disk import choose_files
from p2pcloopd.guest.unseen.importing import (
    Import,
    Imported,
    already_there,
    check_source,
    import_layer,
)

_EPILOG = """
\b
Examples:
  p2pcloop import knoppix-data.img --base @key/knoppix --overlay mine.delta
  sudo p2pcloop import /KNOPPIX-DATA --base KNOPPIX.iso --overlay mine.delta
  p2pcloop import /dev/sdb2 --base @key/knoppix --overlay mine.delta
  p2pcloop import KNOPPIX2 --base @key/knoppix --overlay remaster.delta
  p2pcloop import changes/upper --base debian.squashfs --overlay mine.delta

SOURCE is what lies over the image where it was changed: a file, partition or disk image with an
ext2, ext3, ext4, btrfs or xfs (knoppix-data.img, KNOPPIX-DATA), a directory (such a file system
that is mounted, the `upper` of an overlayfs), or the second cloop of a remaster. It is only read.
Deleted files are understood as aufs notes them (.wh.NAME) and as overlayfs does.
"""


@click.command(name="import", epilog=_EPILOG)
@click.argument("source", type=FilePath())
@click.option("--base", required=True, metavar="REF", help="The image that SOURCE lies over.")
@click.option(
    "--overlay",
    type=FilePath(),
    required=True,
    metavar="FILE",
    help="The overlay to make, for `boot` and `publish`; it must not exist.",
)
@click.option(
    "--overlay-size",
    type=SIZE,
    help="What the overlay may hold; it takes room only for what is written."
    "  [default: 8G, or four times SOURCE]",
)
@at_option
@file_options
@home_option
@json_option
def command(
    source: Path,
    base: str,
    overlay: Path,
    overlay_size: int | None,
    at: int,
    home: Home,
    *,
    as_json: bool,
) -> None:
    """Make an overlay of what a KNOPPIX, or another live system, keeps beside its CD: SOURCE.

    The overlay lies on the image REF: boot it with that, or publish it, which serves the changes
    alone.
    """
    log_to_stderr(logging.WARNING, "p2pcloop: %(message)s")
    if overlay.exists():
        raise already_there(overlay)
    home.create()
    opened = _open_source(source, home, quiet=as_json)
    target = resolve_ref(base, home, at=at)
    if isinstance(target, StoredRef):
        target.check_secret()
    size = _checked_size(target, overlay, overlay_size, home)
    wanted = Import(opened, target, overlay.absolute(), size, home, as_json)
    imported = import_layer(wanted)
    if as_json:
        click.echo(to_json({"overlay": str(overlay)} | dataclasses.asdict(imported)))
    else:
        _report(imported, source, base, overlay)


def _open_source(source: Path, home: Home, *, quiet: bool) -> ImageFile | Path:
    if source.is_dir():
        return source.absolute()
    file = open_image_file(source, home, quiet=quiet)
    check_source(file)
    return file


def _checked_size(
    target: ImageFile | StoredRef, overlay: Path, size: int | None, home: Home
) -> int | None:
    """Refuse an image that takes no files overlay of this size."""
    choose_files(target, overlay, "files", size, home)
    if size is not None and size < MIN_FILES_SIZE:
        raise UsageError("the overlay would be too small", hint="give 64M or more")
    return size


def _report(imported: Imported, source: Path, base: str, overlay: Path) -> None:
    what = tr(
        "{files} files in {directories} directories",
        files=imported.files,
        directories=imported.directories,
    )
    hidden = tr(
        "{deleted} deleted, {replaced} directories replaced",
        deleted=imported.deleted,
        replaced=imported.replaced,
    )
    say(
        tr(
            "{overlay}: {what}, {hidden}, from {source}",
            overlay=printable(str(overlay)),
            what=what,
            hidden=hidden,
            source=printable(str(source)),
        )
    )
    say(tr("boot it with:\n  p2pcloop boot {base} --overlay {overlay}", base=base, overlay=overlay))
    say(tr("pass it on with:\n  p2pcloop publish {overlay} --name LABEL", overlay=overlay))
