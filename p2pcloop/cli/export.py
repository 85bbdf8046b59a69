"""`p2pcloop export`: write an image, with an overlay or without, to a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from p2pcloop.cli.export_iso import IsoExport, check_iso, export_iso, open_device
from p2pcloop.cli.image_output import STDOUT, Output, choose_output, write_device
from p2pcloop.cli.options import REF, FilePath, at_option, file_options, home_option, json_option
from p2pcloop.cli.output import check_not_served
from p2pcloop.client.fetch import fetch_all
from p2pcloop.client.open_stored import Source
from p2pcloop.client.progress import progress_bar
from p2pcloop.client.refs import resolve_ref, tell_state
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import say
from p2pcloop.errors import UsageError
from p2pcloop.formats.cloop_writer import CloopForm
from p2pcloop.image.api import Missing, never_missing
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import open_local
from p2pcloop.making.pack import device_size
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop export @key/debian debian.img
  p2pcloop export @key/debian debian.qcow2
  p2pcloop export debian.cloop mine.cloop --overlay mine.delta
  p2pcloop export @key/debian /dev/sdX --force
  p2pcloop export @key/debian small.cloop --codec xz
  p2pcloop export my-knoppix knoppix.iso --iso
  p2pcloop export KNOPPIX.iso mine.iso --iso --overlay mine.delta
  p2pcloop export @key/debian - --cloop-format 4 | ssh host 'cat > debian.cloop'
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=REF)
@click.argument("out", type=FilePath())
@click.option(
    "--overlay",
    type=FilePath(),
    metavar="FILE",
    help="Write the image as this overlay changed it.",
)
@click.option(
    "--cloop-format",
    type=click.Choice(["2", "4"]),
    help="Write a cloop V2.0, which all cloop tools read, or V4.0.  [default: 2 with zlib]",
)
@click.option(
    "--codec",
    type=click.Choice(["zlib", "xz", "lz4", "lzo"]),
    help="Compress the cloop with this; all but zlib make it a V4.0.  [default: zlib]",
)
@click.option(
    "--iso",
    is_flag=True,
    help="Write a live CD to boot from, with the image and its changes in the image's place on it;"
    " all else is as on the CD that the image was seeded from.  (Needs xorriso.)",
)
@click.option(
    "--cd",
    type=FilePath(),
    metavar="FILE",
    help="With --iso: take all but the image from this CD.",
)
@click.option("--force", is_flag=True, help="Replace OUT where it exists, or write over a disk.")
@at_option
@file_options
@home_option
@json_option
def command(
    ref: str,
    out: Path,
    overlay: Path | None,
    cloop_format: str | None,
    codec: str | None,
    cd: Path | None,
    at: int,
    home: Home,
    *,
    iso: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write the whole image REF to OUT: as a cloop if OUT ends in .cloop or an option of cloops is
    given, as a qcow2 if OUT ends in .qcow2 (needs qemu-img), else as a raw image.

    OUT may be - for the standard output, or a pipe. A cloop V4.0 is then written with its header
    last; a V2.0 is kept in a temporary file until its index is known. With --force OUT may also be
    a disk (a block device that is not mounted). A symbolic link is followed. Blocks of a cloop that
    have not changed, and are compressed in the form that is written, are taken over as they are.
    With --iso the image on the CD has the form that it had there, unless an option of cloops is
    given.
    """
    output = choose_output(out, int(cloop_format) if cloop_format else None, codec, force=force)
    if iso:
        check_iso(output)
    elif cd is not None:
        raise UsageError("--cd goes with --iso", hint="add --iso, or leave out --cd")
    home.create()
    if output.kind != "stream":
        check_not_served(out, home)
    target = resolve_ref(ref, home, at=at)
    _check_sources(out, target, overlay)
    tell_state(target, tr("is written, its memory is not"))
    if isinstance(target, StoredRef):
        output.check_room(target.signed.manifest.disk_length)
    with ExitStack() as stack:
        image, supply = _open(target, home, stack, quiet=as_json)
        if iso:
            wanted = IsoExport(output, target, overlay, cd, home, as_json)
            export_iso(wanted, image, supply, as_json=as_json)
            return
        device = open_device(target, image, overlay, home)
        stack.callback(device.close)
        output.check_room(device.size)
        if isinstance(output.form, CloopForm):
            output = replace(output, form=output.form.for_size(device.size))
        write_device(output, device, supply, quiet=as_json)
    _report(output, device.size, as_json=as_json)


def _report(out: Output, size: int, *, as_json: bool) -> None:
    """Report the result, to stderr if the image itself went to the standard output."""
    stored = out.path.stat().st_size if out.kind == "file" else None
    to_stderr = out.name == STDOUT
    if as_json:
        facts = {"file": str(out.name), "size": size, "stored": stored}
        click.echo(to_json(facts), err=to_stderr)
    else:
        what = "" if stored is None else tr("{stored} for ", stored=format_size(stored))
        say(
            tr("{out}: {what}a device of {size}", out=out.name, what=what, size=format_size(size)),
            err=to_stderr,
        )


def _check_sources(out: Path, target: ImageFile | StoredRef, overlay: Path | None) -> None:
    """Refuse to write over the sources: peers and overlays rely on every byte of an image."""
    sources = [target.name] if isinstance(target, ImageFile) else []
    sources += [] if overlay is None else [overlay]
    if any(source.exists() and out.exists() and out.samefile(source) for source in sources):
        raise UsageError(
            tr("{out} is what is exported", out=out), hint="choose another name for OUT"
        )


def _open(
    target: ImageFile | StoredRef, home: Home, stack: ExitStack, *, quiet: bool
) -> tuple[MergedImage, Callable[[Missing], None]]:
    """Return an image, all of which is here, and the function that replaces damaged ranges."""
    if isinstance(target, ImageFile):
        with progress_bar("reading", quiet=quiet) as progress:
            progress(0, device_size(target))
            return open_local(target, home.indexes, progress), never_missing
    stack.enter_context(target.client)
    source = Source(target, home)  # refuses a private image before anything is fetched
    fetch_all(target, quiet=quiet)
    return source.open(), source.supply
