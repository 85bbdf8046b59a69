"""Disk images of virtual machines, read and written by qemu-img (package qemu-utils)."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from p2pcloop.errors import FormatError, NeedsPackageError, StorageError, storage_error
from p2pcloop.formats.containers import DISK_FORMATS, check_alone, cut_off
from p2pcloop.making.build import Progress, check_image_size
from p2pcloop.units import format_size
from p2pcloop.words import tr

_MEMORY = 2 << 30
"""Bytes of address space for qemu-img: a stranger's image decides how much it allocates."""

_PATIENCE = 60.0
"""Seconds for reading a header."""

RESERVE = 256 << 20
"""Bytes that stay free on the disk, for other programs."""

_LEAKS, _NO_CHECK = 3, 63
"""Exit codes of `qemu-img check`: room is lost, but no content; the format has no check."""

_AGAIN = "fetch or copy it again"
_REPAIR = tr(
    "fetch or copy it again; `qemu-img check -r all` repairs one whose writer was ended by force"
)
_OUR_NAME = re.compile(
    r"qemu-img: |Could not open '(json:\{.*\}|/proc/self/fd/\d+)': |'?json:\{.*\}'?:? ?"
)
_DESCRIPTOR = re.compile(r"(?:stdio:)?/proc/self/fd/\d+")
_MAPPED = re.compile(rb'"length": (\d+),.*"data": true(?:.*"offset": (\d+))?')
_PERCENT = re.compile(rb"\(([0-9.]+)/100%\)")


def unpack_disk(kind: str, path: Path, out: Path, progress: Progress, *, name: Path) -> None:
    """Write the device in a disk image to a sparse raw file.

    No other file is opened, even if the image names a backing file or a data file. qemu-img gets
    the image as a descriptor with its driver, never as a name that QEMU would interpret.

    Args:
        kind: one of `DISK_FORMATS`.
        path: the disk image.
        out: absolute; is made.
        progress: called with the bytes of the device that are done.
        name: of the disk image, for messages.

    Raises:
        UsageError: it takes content from other files.
        FormatError: it is damaged or cut off.
        StorageError: there is no room for it.
        NeedsPackageError: qemu-img is not on this system.
    """
    with path.open("rb") as file:
        fd = file.fileno()
        size = os.lseek(fd, 0, os.SEEK_END)
        check_alone(kind, lambda at, length: os.pread(fd, length, at), size, str(name))
        source = _as_json(kind, fd)
        device = _device_size(source, fd, name)
        checked = _run(["check", "-q", source], fd, timeout=None)
        if checked.returncode not in (0, _LEAKS, _NO_CHECK):
            raise FormatError(
                tr(
                    "{name} is damaged or cut off: {checked}",
                    name=name,
                    checked=_said(checked, name),
                ),
                hint=_REPAIR,
            )
        check_room(out.parent, _data_size(source, fd, size, name), name)
        _convert(source, fd, out, lambda share: progress(int(share * device)), name)


def pack_qcow2(raw: int, out: int, *, name: Path) -> None:
    """Write a raw file as a qcow2 image; holes and zeros take no room.

    Args:
        raw: the descriptor of the file.
        out: that of an empty file.
        name: of `out`, for messages.

    Raises:
        StorageError: qemu-img could not write it.
        NeedsPackageError: qemu-img is not on this system.
    """
    done = _run(
        ["convert", "-O", "qcow2", _as_json("raw", raw), f"/proc/self/fd/{out}"],
        raw,
        out,
        timeout=None,
    )
    if done.returncode:
        said = _said(done, name)
        if os.strerror(errno.ENOSPC) in said:
            raise storage_error(tr("cannot write {name}", name=name), OSError(errno.ENOSPC, ""))
        raise StorageError(
            tr("qemu-img cannot write {name}: {said}", name=name, said=said), errno=errno.EIO
        )


def _as_json(kind: str, fd: int) -> str:
    """An image in the form of QEMU's pseudo-protocol, so that QEMU guesses nothing."""
    is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
    file = {"driver": "host_device" if is_device else "file", "filename": f"/proc/self/fd/{fd}"}
    node: dict[str, Any] = {"driver": DISK_FORMATS.get(kind, kind), "file": file, "read-only": True}
    if kind == "vhd":
        node["force_size_calc"] = "current_size"  # the geometry would cut off the end of some
    if kind in DISK_FORMATS:
        node["backing"] = None
    return f"json:{json.dumps(node)}"


def _device_size(source: str, fd: int, name: Path) -> int:
    done = _run(["info", "--output=json", source], fd, timeout=_PATIENCE)
    try:
        size = int(json.loads(done.stdout)["virtual-size"])
    except (ValueError, KeyError, TypeError) as err:
        raise FormatError(
            tr("qemu-img cannot read {name}: {done}", name=name, done=_said(done, name)),
            hint=_REPAIR,
        ) from err
    check_image_size(size)
    return size


def check_room(folder: Path, needed: int, name: Path) -> None:
    """Refuse to unpack a file if the disk has too little room; some has to stay free.

    Raises:
        StorageError: there is too little.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE:
        raise StorageError(
            tr(
                "there is no room for the content of {name}: it needs {needed} more, and of"
                " {free} that are free, {reserve} stay so",
                name=name,
                needed=format_size(needed),
                free=format_size(free),
                reserve=format_size(RESERVE),
            ),
            errno=errno.ENOSPC,
            hint=tr("free some space where {folder} is, or choose another --home", folder=folder),
        )


def _data_size(source: str, fd: int, size: int, name: Path) -> int:
    """Return how many bytes of the device are no zeros.

    Refuses data that begins within the file and ends behind it: QEMU would read zeros there. Of
    compressed data QEMU does not tell the place; `check` and the decompression find such an end.
    """
    end = data = 0
    with tempfile.TemporaryFile() as errors:
        with _start(["map", "--output=json", source], fd, errors=errors) as process:
            assert process.stdout is not None, "it is a pipe"
            for line in process.stdout:  # one for each stretch
                if found := _MAPPED.search(line):
                    data += int(found[1])
                    if found[2]:
                        end = max(end, int(found[1]) + int(found[2]))
        errors.seek(0)
        if process.returncode:
            said = _words(errors.read(4096), process.returncode, name)
            raise FormatError(
                tr("qemu-img cannot read {name}: {said}", name=name, said=said), hint=_AGAIN
            )
    if end > size:
        raise cut_off(name, end, size)
    return data


def _convert(
    source: str, fd: int, out: Path, progress: Callable[[float], None], name: Path
) -> None:
    command = ["convert", "-p", "-O", "raw", source, str(out.absolute())]
    with tempfile.TemporaryFile() as errors, _start(command, fd, errors=errors) as process:
        assert process.stdout is not None, "it is a pipe"
        while data := os.read(process.stdout.fileno(), 4096):
            if found := _PERCENT.findall(data):
                progress(float(found[-1]) / 100)
        process.wait()
        errors.seek(0)
        said = errors.read(4096)
    if process.returncode:
        message = _words(said, process.returncode, name)
        if os.strerror(errno.ENOSPC) in message:
            raise StorageError(
                tr("there is no room for the content of {name}", name=name),
                errno=errno.ENOSPC,
                hint=tr(
                    "free some space where {parent} is, or choose another --home", parent=out.parent
                ),
            )
        raise FormatError(
            tr("qemu-img cannot read {name}: {message}", name=name, message=message), hint=_AGAIN
        )


def _run(
    command: Sequence[str], *fds: int, timeout: float | None
) -> subprocess.CompletedProcess[bytes]:
    with _start(command, *fds) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as late:
            process.kill()
            raise FormatError(
                tr("qemu-img needs more than {timeout:.0f} s for a header", timeout=timeout),
                hint=_AGAIN,
            ) from late
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _start(
    command: Sequence[str], *fds: int, errors: IO[bytes] | int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    return start_tool(
        ["qemu-img", *command], *fds, package="qemu-utils", memory=_MEMORY, errors=errors
    )


def start_tool(
    command: Sequence[str],
    *fds: int,
    package: str,
    memory: int,
    errors: IO[bytes] | int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Start a program on a stranger's files, which it gets as descriptors, with bounded memory.

    Raises:
        NeedsPackageError: it is not on this system.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=fds,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError as err:
        raise NeedsPackageError(
            tr("{command} is needed for this image", command=command[0]),
            hint=tr("apt install {package}", package=package),
        ) from err
    with suppress(
        OSError
    ):  # the process has ended, or a container forbids it; this is only a second guard
        resource.prlimit(process.pid, resource.RLIMIT_AS, (memory, memory))
    return process


def _said(done: subprocess.CompletedProcess[bytes], name: Path) -> str:
    return _words(done.stderr, done.returncode, name)


def _words(said: bytes, code: int, name: Path) -> str:
    """The start of its message."""
    lines = said.decode("utf-8", "replace").splitlines()
    text = next(
        (line.strip() for line in lines if line.strip()), tr("it ended with {code}", code=code)
    )
    return with_name(_OUR_NAME.sub("", text), name)[:300]


def with_name(said: str, name: Path) -> str:
    """The words of a program that got a file as a descriptor, with the file's name in them."""
    return _DESCRIPTOR.sub(lambda _: str(name), said)
