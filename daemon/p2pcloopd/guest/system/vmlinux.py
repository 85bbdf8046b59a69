"""The program in a kernel for PCs: what a bzImage unpacks into memory when it starts.

QEMU loads it by its entry for virtual machines (PVH, Documentation/arch/x86/boot.rst and
xen/include/public/elfnote.h). Where QEMU has no KVM, the unpacking alone takes half of a guest's
boot: xz in emulated code needs 5 s where this process needs one. Such a kernel is not put at a
random address: that is part of the unpacking.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import zstandard

from p2pcloop.formats.elf import PT_NOTE, segments
from p2pcloop.store.unpacked_kernels import PREFIX, kernels_folder

_MAX_SIZE = 512 << 20
_PROTOCOL = 0x0208
"""The version of the boot protocol that tells where the packed program is (2.08)."""

_NEW, _DIGITS = ".new-", 16
_KEPT, _KEPT_SECONDS = 2, 86400.0

_NOTE = struct.Struct("<III")
_PHYS32_ENTRY = 18


def unpack_kernel(image: bytes) -> bytes | None:
    """Return the ELF file in a bzImage, if a virtual machine can start it.

    Args:
        image: the bzImage.

    Returns:
        None if it is packed in a way that is not known here, is damaged, or cannot be started so.
    """
    packed = _payload(image)
    try:
        program = next((take(packed) for magic, take in _WAYS if packed.startswith(magic)), b"")
        return program if _has_entry(program) else None
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError, struct.error, EOFError):
        return None


def unpacked_kernel_file(path: Path, folder: Path | None = None) -> Path | None:
    """Return a file with the program in a bzImage. It is made once, and kept for the next guest.

    Args:
        path: the bzImage.
        folder: where such files are; None for the user's cache.

    Returns:
        None where there can be none: see `unpack_kernel`; or no file can be written there.
    """
    folder = folder or kernels_folder()
    try:
        image = path.read_bytes()
        place = folder / f"{PREFIX}{hashlib.sha256(image).hexdigest()[:_DIGITS]}"
        if place.is_file():
            os.utime(place)  # it is in use
            return place
        program = unpack_kernel(image)
        if program is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        _write(place, program)
    except OSError:  # no room, no home, another user's
        return None
    with suppress(OSError):  # another guest's process may remove them, too
        _remove_old(folder, place)
    return place


def _write(place: Path, program: bytes) -> None:
    fd, name = tempfile.mkstemp(dir=place.parent, prefix=_NEW)
    made = Path(name)
    try:
        with open(fd, "wb") as file:
            file.write(program)
            file.flush()
            os.fsync(fd)  # a part of it would be taken for all of it for ever
        made.chmod(0o644)  # QEMU may have another user's number
        made.replace(place)
    except BaseException:
        made.unlink()
        raise


def _remove_old(folder: Path, current: Path) -> None:
    """Remove what was made of other kernels, and what a process left that was killed. Some that
    were used last stay: states of guests with them are resumed by their pages."""
    kernels = [path for path in folder.glob(f"{PREFIX}*") if path != current]
    kernels.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for other in [*kernels[_KEPT:], *folder.glob(f"{_NEW}*")]:
        # A guest may be about to start with a new one.
        if time.time() - other.stat().st_mtime > _KEPT_SECONDS:
            other.unlink(missing_ok=True)


def _payload(image: bytes) -> bytes:
    """What is packed; empty if the image does not tell."""
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        return b""
    (protocol,) = struct.unpack_from("<H", image, 0x206)
    if protocol < _PROTOCOL:
        return b""
    setup = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    return image[setup + offset : setup + offset + length]


# The kernel's build puts the size behind what it packs, which is not looked at.
def _xz(packed: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    program = unpacker.decompress(packed, _MAX_SIZE)
    return program if unpacker.eof else b""


def _gzip(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    program = unpacker.decompress(packed, _MAX_SIZE)
    return program if unpacker.eof else b""


def _zstd(packed: bytes) -> bytes:
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    program = unpacker.decompress(packed)
    return program if unpacker.eof else b""


_WAYS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\xfd7zXZ\0", _xz),
    (b"\x1f\x8b", _gzip),
    (b"\x28\xb5\x2f\xfd", _zstd),
)


def _has_entry(program: bytes) -> bool:
    """Whether an ELF file for this processor has an entry for virtual machines."""
    return any(
        (b"Xen\0", _PHYS32_ENTRY) in _notes(program, segment.offset, segment.length)
        for segment in segments(program)
        if segment.kind == PT_NOTE
    )


def _notes(program: bytes, at: int, length: int) -> Iterator[tuple[bytes, int]]:
    """Owner and kind of each note."""
    end = at + length
    while at + _NOTE.size <= end:
        name, content, kind = _NOTE.unpack_from(program, at)
        at += _NOTE.size
        yield program[at : at + name], kind
        at += -(-name // 4) * 4 + -(-content // 4) * 4
