"""Writing an image as a raw image, a qcow2 or a cloop: to a file, a pipe or a disk."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from p2pcloop.cli.new_file import new_file
from p2pcloop.cli.output import check_place
from p2pcloop.client.progress import progress_bar, waiting_for
from p2pcloop.client.terminal import STDOUT_NAMES, check_output_open, notify
from p2pcloop.errors import BusyError, UsageError, storage_error
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop_writer import (
    CloopForm,
    FindStored,
    nothing_stored,
    stream_cloop,
    write_cloop,
)
from p2pcloop.formats.containers import CONTAINERS
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.cloop_blocks import find_stored
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.reader import DeviceReader
from p2pcloop.making.qemu_img import pack_qcow2
from p2pcloop.units import format_size
from p2pcloop.words import tr

STDOUT = Path("-")

THE_DISK = "the disk to keep it"
"""What a command waits for whose output must survive a crash."""

_STEP = 1 << 20
_ZEROS = bytes(_STEP)


_NOT_WRITTEN = (
    *(f".{kind}" for kind in CONTAINERS if kind != "qcow2"),
    *(".zip", ".7z", ".tar", ".lz4", ".lzo", ".ova", ".dmg"),
)
"""Endings of forms of images that are not written."""

Form = CloopForm | Literal["raw", "qcow2"]


@dataclass(frozen=True, slots=True)
class Output:
    """The place and the form in which an image is written.

    Attributes:
        name: OUT, in the user's words.
        path: the same, with symbolic links followed.
        kind: "file", which is replaced whole; "stream", written from start to end (a pipe, a
            character device); "disk", a block device, which is written into.
        form: of the image there.
    """

    name: Path
    path: Path
    kind: Literal["file", "stream", "disk"]
    form: Form

    def check_room(self, size: int) -> None:
        """Compare the size of a disk with that of the image.

        Args:
            size: bytes of the image's device.

        Raises:
            UsageError: the disk is smaller.
            StorageError: it cannot be read.
        """
        if self.kind != "disk" or self.form != "raw":
            return
        try:
            with self.path.open("rb") as disk:
                room = disk.seek(0, os.SEEK_END)
        except OSError as err:
            raise storage_error(tr("cannot read {name}", name=self.name), err) from err
        if room < size:
            raise UsageError(
                tr(
                    "{name} has {room} ({room2} bytes), and the image has {size} ({size2} bytes)",
                    name=self.name,
                    room=format_size(room),
                    room2=room,
                    size=format_size(size),
                    size2=size,
                ),
                hint="take a larger disk",
            )


def choose_output(out: Path, version: int | None, codec: str | None, *, force: bool) -> Output:
    """Decide where OUT leads and in which form, before anything is fetched or read.

    Args:
        version, codec: of a cloop; None if not given.
        force: a file that exists may be replaced, and a disk written over.

    Raises:
        UsageError: the version has no such codec; OUT exists and is not to be replaced, is a
            terminal, a socket or a folder.
        StorageError: there is no folder for it.
    """
    if str(out) in STDOUT_NAMES:  # which may be a file that the shell has made
        out = STDOUT
    kind = _kind(out)
    form = _choose_form(out, version, codec)
    if (kind == "stream" and form == "qcow2") or (kind == "disk" and form != "raw"):
        what = "qcow2" if form == "qcow2" else "cloop"
        raise UsageError(
            tr(
                "{out} is a {what}: no {what2} is written there",
                out=out,
                what=tr("disk") if kind == "disk" else tr("pipe or a device"),
                what2=what,
            ),
            hint="give a file for it, or a name without that ending for the raw image",
        )
    if kind == "stream":
        if out == STDOUT:
            check_output_open()
        if out == STDOUT and sys.stdout.isatty():
            raise UsageError("an image is not written to a terminal", hint="give it a pipe")
        return Output(out, out, kind, form)
    path = Path(os.path.realpath(out))
    check_place(path)
    if kind == "disk" and not force:
        raise UsageError(
            tr("{out} is a disk: what is on it would be written over", out=out),
            hint="give --force if you mean it",
        )
    if path.exists() and not force:
        raise UsageError(tr("{out} exists", out=out), hint="choose another name, or give --force")
    return Output(out, path, kind, form)


def _choose_form(out: Path, version: int | None, codec: str | None) -> Form:
    """Return the form: by the options, else by the name of OUT."""
    suffix = out.suffix.lower()
    if version is None and codec is None and suffix != ".cloop":
        if suffix in _NOT_WRITTEN:
            raise UsageError(
                tr(
                    "no image is written as {suffix}: {out} would hold a raw image",
                    suffix=suffix,
                    out=out,
                ),
                hint="give OUT another ending (.img, .qcow2, .cloop), and convert that",
            )
        return "qcow2" if suffix == ".qcow2" else "raw"
    chosen = Codec[(codec or "zlib").upper()]
    if version == 2 and chosen is not Codec.ZLIB:
        raise UsageError(
            tr("cloop V2.0 has no {codec}, only zlib", codec=codec),
            hint="leave --cloop-format away, or give 4",
        )
    return CloopForm(version or (2 if chosen is Codec.ZLIB else 4), chosen)


def _kind(out: Path) -> Literal["file", "stream", "disk"]:
    if out == STDOUT:
        return "stream"
    mode = _mode(out)
    if stat.S_ISSOCK(mode):
        raise UsageError(
            tr("{out} is a socket", out=out), hint="choose a file, a pipe or a disk for OUT"
        )
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return "stream"
    return "disk" if stat.S_ISBLK(mode) else "file"


def _mode(out: Path) -> int:
    """Type and permissions of what lies there; 0 if there is nothing.

    Raises:
        StorageError: it cannot be told: symbolic links that lead to themselves, say.
    """
    try:
        return out.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0  # `check_place` tells more
    except OSError as err:
        raise storage_error(tr("cannot write {path}", path=out), err) from err


def write_image(
    out: Output,
    source: BinaryIO,
    size: int,
    progress: Callable[[int], None],
    skip_zeros: Callable[[], int] = lambda: 0,
    find: FindStored = nothing_stored,
) -> None:
    """Write `size` bytes of an image.

    A file is replaced only when the new one is whole and durable. On a disk the image is durable
    when this returns; the rest of the disk behind it stays unchanged.

    Args:
        skip_zeros: skips zeros of the source that need not be read, and returns how many bytes;
            called between whole reads of 1 MiB.
        find: see `write_cloop`.

    Raises:
        BusyError: the disk is in use.
        StorageError: the disk refused, or the reader of the pipe went away.
        NeedsPackageError: LZO without its library, qcow2 without qemu-img.
    """
    if out.form == "qcow2":
        _write_qcow2(out.path, source, size, progress, skip_zeros)
        return
    streamed = out.kind == "stream"
    opened = {"stream": _stream, "disk": _disk, "file": replacing}[out.kind]
    with opened(out.path) as file:
        if isinstance(out.form, CloopForm):
            write = stream_cloop if streamed else write_cloop
            write(source, size, file, out.form, find=find, progress=progress)
        else:
            holes = out.kind == "file"
            _write_raw(source, size, file, progress, skip_zeros if holes else None)


def write_device(
    out: Output, device: ImageDevice, supply: Callable[[Missing], None], *, quiet: bool
) -> None:
    """`write_image` of a device; blocks of a cloop that are as wanted already are taken over.

    Args:
        supply: fetches missing ranges, or replaces damaged ones.
        quiet: show no progress.
    """
    raw = DeviceReader(device, supply)
    # Of a cloop, blocks between those that are read may be taken over: nothing is read ahead.
    step = out.form.block_size if isinstance(out.form, CloopForm) else _STEP
    reader = io.BufferedReader(raw, step)
    with progress_bar("writing", quiet=quiet) as progress:
        progress(0, device.size)
        find = partial(find_stored, device)
        write_image(out, reader, device.size, progress, raw.skip_zeros, find)


def _write_qcow2(
    out: Path,
    source: BinaryIO,
    size: int,
    progress: Callable[[int], None],
    skip_zeros: Callable[[], int],
) -> None:
    """Pack a temporary raw file beside it, with holes where the image has zeros."""
    try:
        with new_file(out) as raw, new_file(out) as packed:
            _write_raw(source, size, raw.file, progress, skip_zeros)
            raw.file.flush()
            with waiting_for("qemu-img"):
                pack_qcow2(raw.file.fileno(), packed.file.fileno(), name=out)
            with waiting_for(THE_DISK):
                os.fsync(packed.file.fileno())
            packed.take_place()
    except OSError as err:
        raise storage_error(tr("cannot write {path}", path=out), err) from err


def _write_raw(
    source: BinaryIO,
    size: int,
    file: BinaryIO,
    progress: Callable[[int], None],
    skip_zeros: Callable[[], int] | None,
) -> None:
    """Write a raw image: with `skip_zeros`, leave holes for zeros; without, write them."""
    holes = skip_zeros is not None
    done = 0
    while True:
        if skip_zeros is not None and (zeros := skip_zeros()):
            file.seek(zeros, os.SEEK_CUR)
            done += zeros
        if not (data := source.read(_STEP)):
            break
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
        with _open_stream(out) as file:
            yield file
    except OSError as err:
        name = tr("the standard output") if out == STDOUT else out
        raise storage_error(tr("cannot write {name}", name=name), err) from err


def _open_stream(out: Path) -> BinaryIO:
    """Open a pipe or a device; report it if the pipe has no reader, as that may last."""
    if stat.S_ISFIFO(out.stat().st_mode):
        try:
            fd = os.open(out, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.set_blocking(fd, True)
            return open(fd, "wb")
        except OSError as err:
            if err.errno != errno.ENXIO:
                raise
        notify(tr("waiting for a program that reads the pipe {out}", out=out))
    return out.open("wb")


@contextmanager
def _disk(path: Path) -> Iterator[BinaryIO]:
    """A block device that is not in use: O_EXCL refuses a mounted one (open(2))."""
    try:
        with open(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC), "r+b") as file:
            yield file
            file.flush()
            with waiting_for(THE_DISK):
                os.fsync(file.fileno())
    except OSError as err:
        if err.errno == errno.EBUSY:
            raise BusyError(tr("{path} is in use", path=path), hint="unmount it first") from err
        raise storage_error(tr("cannot write {path}", path=path), err) from err


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` when it is whole and durable, not before.

    Raises:
        StorageError: the disk refused.
    """
    try:
        with new_file(path) as new:
            yield new.file
            new.file.flush()
            with waiting_for(THE_DISK):
                os.fsync(new.file.fileno())
            new.take_place()
    except OSError as err:
        raise storage_error(tr("cannot write {path}", path=path), err) from err
