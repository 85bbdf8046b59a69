"""Writes an image as a raw file, a qcow2 or a cloop: in the place of a file, or into a pipe."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from p2pcloop.cli.output import check_place
from p2pcloop.cli.qcow2 import pack_qcow2
from p2pcloop.errors import UsageError, storage_error
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop_writer import stream_cloop, write_cloop
from p2pcloop.store.home import sync_directory

STDOUT = Path("-")

_STEP = 1 << 20
_ZEROS = bytes(_STEP)


@dataclass(frozen=True, slots=True)
class CloopForm:
    """Which cloop is written.

    Attributes:
        version: 2 or 4.
        codec: of its blocks.
    """

    version: int
    codec: Codec


def choose_form(out: Path, version: int | None, codec: str | None) -> CloopForm | None:
    """Return which cloop is written, None where it is a raw image: what is given counts, then the
    name.

    Raises:
        UsageError: the version has no such codec.
    """
    if version is None and codec is None and out.suffix != ".cloop":
        return None
    chosen = Codec[(codec or "zlib").upper()]
    if version == 2 and chosen is not Codec.ZLIB:
        raise UsageError(
            f"cloop V2.0 has no {codec}, only zlib", hint="leave --cloop-format away, or give 4"
        )
    return CloopForm(version or (2 if chosen is Codec.ZLIB else 4), chosen)


def check_output(out: Path, *, force: bool) -> None:
    """Check that OUT can be written, before anything is fetched or read for nothing.

    Raises:
        UsageError: it exists and is not to be replaced, or is a terminal.
        StorageError: there is no folder for it.
    """
    if out == STDOUT:
        if sys.stdout.isatty():
            raise UsageError("an image is not written to a terminal", hint="give it a pipe")
        return
    check_place(out)
    if out.exists() and not is_stream(out) and not force:
        raise UsageError(f"{out} exists", hint="choose another name, or give --force")


def is_stream(out: Path) -> bool:
    """Whether OUT is written from start to end and cannot be replaced: a pipe, or a device."""
    if out == STDOUT:
        return True
    mode = out.stat().st_mode if out.exists() else 0
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def write_image(
    out: Path,
    source: BinaryIO,
    size: int,
    form: CloopForm | None,
    progress: Callable[[int], None],
) -> None:
    """Write `size` bytes of an image.

    What it replaces is there until it is whole and durable.

    Raises:
        StorageError: the disk refused, or who reads the pipe went away.
        NeedsPackageError: LZO without its library, qcow2 without qemu-img.
    """
    streamed = is_stream(out)
    if form is None and out.suffix == ".qcow2" and not streamed:
        _write_qcow2(out, source, size, progress)
        return
    with _stream(out) if streamed else _replacing(out) as file:
        if form is not None:
            write = stream_cloop if streamed else write_cloop
            write(source, size, file, version=form.version, codec=form.codec, progress=progress)
        else:
            _write_raw(source, size, file, progress, holes=not streamed)


def is_qcow2_name(out: Path) -> bool:
    """Whether OUT becomes a qcow2, by its name."""
    return out.suffix == ".qcow2"


def _write_qcow2(out: Path, source: BinaryIO, size: int, progress: Callable[[int], None]) -> None:
    """By way of a raw file beside it, with holes where the image has zeros."""
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            raw, packed = Path(folder, "raw"), Path(folder, "qcow2")
            with raw.open("wb") as file:
                _write_raw(source, size, file, progress, holes=True)
            pack_qcow2(raw, packed)
            with packed.open("rb") as made:
                os.fsync(made.fileno())
            _take_place(packed, out)
    except OSError as err:
        raise storage_error(f"cannot write {out}", err) from err


def _write_raw(
    source: BinaryIO, size: int, file: BinaryIO, progress: Callable[[int], None], *, holes: bool
) -> None:
    done = 0
    while data := source.read(_STEP):
        if holes and data == _ZEROS[: len(data)]:
            file.seek(len(data), os.SEEK_CUR)
        else:
            file.write(data)
        done += len(data)
        progress(done)
    if holes:
        file.truncate(size)


@contextmanager
def _stream(out: Path) -> Iterator[BinaryIO]:
    try:
        if out == STDOUT:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
        with out.open("wb") as file:
            yield file
    except OSError as err:
        raise storage_error(f"cannot write {out}", err) from err


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
        _take_place(temporary, path)
        temporary = None
    except OSError as err:
        raise storage_error(f"cannot write {path}", err) from err
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _take_place(made: Path, path: Path) -> None:
    """Put a durable file in the place of `path`, readable as any new file."""
    umask = os.umask(0)
    os.umask(umask)
    made.chmod(0o666 & ~umask)
    made.replace(path)
    sync_directory(path.parent)
