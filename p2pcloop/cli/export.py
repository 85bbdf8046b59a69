"""`p2pcloop export`: write an image, with an overlay or without, to a file."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from p2pcloop.cli.fetch import fetch_all
from p2pcloop.cli.options import at_option, home_option, json_option, to_json
from p2pcloop.cli.output import check_place
from p2pcloop.cli.progress import progress_bar
from p2pcloop.cli.refs import StoredRef, resolve_ref
from p2pcloop.cli.stored import Source
from p2pcloop.errors import UsageError, storage_error
from p2pcloop.formats.cloop_writer import write_cloop
from p2pcloop.formats.overlay import Overlay
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.reader import DeviceReader
from p2pcloop.making.local import ImageFile, open_local
from p2pcloop.store.home import Home, sync_directory
from p2pcloop.units import format_size

_EPILOG = """
\b
Examples:
  p2pcloop export @key/debian debian.img
  p2pcloop export debian.cloop mine.cloop --overlay mine.delta
"""

_STEP = 1 << 20
_ZEROS = bytes(_STEP)


@click.command(epilog=_EPILOG)
@click.argument("ref")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--overlay",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the image as this overlay changed it.",
)
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@at_option
@home_option
@json_option
def command(
    ref: str, out: Path, overlay: Path | None, at: int, home: Home, *, force: bool, as_json: bool
) -> None:
    """Write the whole image REF to OUT: a cloop V2.0 if it ends in .cloop, else a raw image."""
    _check_place(out, force=force)
    home.create()
    target = resolve_ref(ref, home, at=at)
    _check_sources(out, target, overlay)
    with ExitStack() as stack:
        image, supply = _open(target, home, stack, quiet=as_json)
        changes = None
        if overlay is not None:
            changes = Overlay.open(overlay, image_id=image.image_id, read_only=True)
        device = ImageDevice(image, changes)
        stack.callback(device.close)
        _write(out, device, supply, quiet=as_json)
    stored = out.stat().st_size
    if as_json:
        click.echo(to_json({"file": str(out), "size": device.size, "stored": stored}))
    else:
        click.echo(f"{out}: {format_size(stored)} for a device of {format_size(device.size)}")


def _check_place(out: Path, *, force: bool) -> None:
    """Before anything is fetched or read for nothing."""
    check_place(out)
    if out.exists() and not force:
        raise UsageError(f"{out} exists", hint="choose another name, or give --force")


def _check_sources(out: Path, target: ImageFile | StoredRef, overlay: Path | None) -> None:
    """What is exported must outlive it: peers and overlays rely on the very bytes of an image."""
    sources = [target.path] if isinstance(target, ImageFile) else []
    sources += [] if overlay is None else [overlay]
    if any(source.exists() and out.exists() and out.samefile(source) for source in sources):
        raise UsageError(f"{out} is what is exported", hint="choose another name for OUT")


def _open(
    target: ImageFile | StoredRef, home: Home, stack: ExitStack, *, quiet: bool
) -> tuple[MergedImage, Callable[[Missing], None]]:
    """Return an image all of which is here, and who brings what is damaged here."""
    if isinstance(target, ImageFile):
        with progress_bar("reading", quiet=quiet) as progress:
            return open_local(target, home.indexes, progress), _never
    stack.enter_context(target.client)
    source = Source(target, home)  # refuses a private image before anything is fetched
    fetch_all(target, quiet=quiet)
    return source.open(), source.supply


def _never(missing: Missing) -> None:
    raise AssertionError(f"a local image cannot lack anything, yet: {missing}")


def _write(
    out: Path, device: ImageDevice, supply: Callable[[Missing], None], *, quiet: bool
) -> None:
    with _replacing(out) as file, progress_bar("writing", quiet=quiet) as progress:
        progress(0, device.size)
        reader = io.BufferedReader(DeviceReader(device, supply), _STEP)
        if out.suffix == ".cloop":
            write_cloop(reader, device.size, file, progress=progress)
            return
        while data := reader.read(_STEP):
            # Zeros become holes.
            if data == _ZEROS[: len(data)]:
                file.seek(len(data), os.SEEK_CUR)
            else:
                file.write(data)
            progress(file.tell())
        file.truncate(device.size)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole and durable, and not before.

    Raises:
        StorageError: the disk refused.
    """
    temporary: Path | None = None
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        temporary = None
        sync_directory(path.parent)
    except OSError as err:
        raise storage_error(f"cannot write {path}", err) from err
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
