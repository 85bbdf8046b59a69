"""qcow2 images, which qemu-img reads and writes for us (format: QEMU, docs/interop/qcow2.rst)."""

from __future__ import annotations

import errno
import struct
import subprocess
from pathlib import Path

from p2pcloop.errors import FormatError, NeedsPackageError, StorageError, UsageError

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQ")
"""magic, version, offset of the backing file's name."""

_INCOMPATIBLE = 72
_EXTERNAL_DATA = 1 << 2


def is_qcow2(path: Path) -> bool:
    """Tell a qcow2 image by its first bytes."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def unpack_qcow2(path: Path, out: Path) -> None:
    """Write the device in a qcow2 image to a sparse raw file.

    Raises:
        UsageError: it takes content from other files: whoever made it would choose which of the
            files of this machine are published.
        FormatError: it is damaged.
        NeedsPackageError: qemu-img is not on this system.
    """
    with path.open("rb") as file:
        header = file.read(_INCOMPATIBLE + 8).ljust(_INCOMPATIBLE + 8, b"\0")
    _, version, backing = _HEADER.unpack_from(header)
    features = struct.unpack_from(">Q", header, _INCOMPATIBLE)[0] if version > 2 else 0
    if backing or features & _EXTERNAL_DATA:
        raise UsageError(
            f"{path} takes a part of its content from another file",
            hint="make one image of them first: `qemu-img convert -O raw IN OUT`",
        )
    if said := _convert("qcow2", path, "raw", out):
        raise FormatError(f"qemu-img cannot read {path}: {said}")


def pack_qcow2(raw: Path, out: Path) -> None:
    """Write a raw file as a qcow2 image; what is a hole or zeros takes no room.

    Raises:
        StorageError: qemu-img could not write it.
        NeedsPackageError: qemu-img is not on this system.
    """
    if said := _convert("raw", raw, "qcow2", out):
        raise StorageError(f"qemu-img cannot write {out}: {said}", errno=errno.EIO)


def _convert(form: str, source: Path, to: str, out: Path) -> str:
    """Return what qemu-img said where it failed, else ""."""
    command = ["qemu-img", "convert", "-f", form, "-O", to, str(source), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as err:
        raise NeedsPackageError(
            "qemu-img is needed for qcow2 images", hint="apt install qemu-utils"
        ) from err
    return " ".join(done.stderr.split()) or "it failed" if done.returncode else ""
