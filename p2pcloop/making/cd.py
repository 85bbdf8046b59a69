"""Writing a live CD again with another image on it, by xorriso (package xorriso).

All else of the CD stays: its other files, its volume name, and what makes it boot, which xorriso
takes over (`-boot_image any replay`): El Torito for BIOS and UEFI, and what lets it boot from a
stick (isohybrid's MBR, GPT, an appended EFI partition).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO

from p2pcloop.errors import FormatError, StorageError, UsageError, storage_error
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.cloop_writer import CloopForm
from p2pcloop.formats.extents import Extents
from p2pcloop.formats.iso import is_iso
from p2pcloop.formats.iso9660 import read_volume
from p2pcloop.frozen import dataclass
from p2pcloop.making.image_file import Part
from p2pcloop.making.local import inspect_file
from p2pcloop.making.qemu_img import start_tool, with_name
from p2pcloop.words import tr

_MEMORY = 2 << 30
"""Bytes of address space for xorriso: a stranger's CD decides how many files it has."""

_POLL_SECONDS = 0.2
_HEAD = 40_000
_KNOPPIX = re.compile(r"knoppix/knoppix[0-9]*", re.IGNORECASE)
_NEWEST = "V4.0"

_SUMS = ("KNOPPIX/sha1sums", "KNOPPIX/md5sums", "md5sum.txt", "sha256sum.txt")
"""Lists of checksums on a CD, by which a live system tests it (KNOPPIX: the cheatcode `testcd`)."""

_MAX_SUMS = 16 << 20
_SUM = re.compile(rb"([0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})( [ *])(?:\./)?(.+)")
_ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}
"""Of a checksum in hexadecimal digits, by its length."""


@dataclass(frozen=True, slots=True)
class LiveCd:
    """A CD with the image of a live system.

    Attributes:
        path: of the CD image.
        name: of it, for messages.
        images: the files on it that are the image, from base to top.
        joliet: whether it has names for Windows, too.
    """

    path: Path
    name: Path
    images: tuple[Part, ...]
    joliet: bool


def starts_as_cd(path: Path) -> bool:
    """Whether a file is a CD image.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return is_iso(file.read(_HEAD))
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=path), err) from err


def open_cd(path: Path, name: Path) -> LiveCd:
    """Find the image on a CD.

    Args:
        name: for messages.

    Raises:
        UsageError: it is no CD, or no live CD whose image can be replaced.
        FormatError: it is damaged.
        NotHereError, StorageError: it is gone, or the system refused.
    """
    file = inspect_file(path)
    if file.kind != "iso":
        raise UsageError(
            tr("{name} is no CD image", name=name), hint="give the .iso whose boot files to take"
        )
    if not file.parts[0].name:
        raise UsageError(
            tr("{name} is no live CD: its root is the CD itself, and not a file on it", name=name),
            hint="copy its files, change them there, and write them with `xorriso -as mkisofs`",
        )
    more = [part.name for part in file.parts[1:]]
    if more and not all(_KNOPPIX.fullmatch(part.name) for part in file.parts):
        raise UsageError(
            tr(
                "the image on {name} is of several files ({more} over {name2}), which only the"
                " CD's own initramfs joins",
                name=name,
                more=", ".join(more),
                name2=file.parts[0].name,
            ),
            hint="of such CDs only KNOPPIX's are written",
        )
    with path.open("rb") as opened:
        trees = read_volume(opened.fileno(), file.size).trees
    joliet = any(tree.names == "Joliet" for tree in trees)
    return LiveCd(file.path, name, file.parts, joliet)


def form_on_cd(cd: LiveCd) -> CloopForm | None:
    """The form of a cloop like the first one on a CD; None where that is no cloop.

    Older ones than V2.0 have it as V2.0.
    """
    first = cd.images[0]
    if first.kind != "cloop":
        return None
    with open_cloop(cd.path, first.extents, cd.name) as cloop:
        index = cloop.index
    block_size = index.header.block_size
    if index.version != _NEWEST:
        return CloopForm(block_size=block_size)
    codecs = {codec: count for codec, count in index.codecs().items() if codec is not Codec.NONE}
    codec = max(codecs, key=lambda codec: codecs[codec], default=Codec.ZLIB)
    return CloopForm(4, codec, block_size)


def write_cd(cd: LiveCd, image: Path, out: Path, progress: Callable[[int, int], None]) -> None:
    """Write a CD with another file in the place of its image, which is that one file then.

    Args:
        image: the file.
        out: the CD image to make.
        progress: called with the bytes that are written, and with those of all.

    Raises:
        NeedsPackageError: xorriso is not on this system.
        StorageError: there is no room.
        FormatError: xorriso cannot read the CD, or has not written what was asked for.
    """
    place = "/" + cd.images[0].name
    dropped = ["/" + part.name for part in cd.images[1:]]
    try:
        old = sum(part.extents.size for part in cd.images)
        total = cd.path.stat().st_size - old + image.stat().st_size
        with (
            cd.path.open("rb") as file,
            tempfile.TemporaryFile() as errors,
            tempfile.TemporaryDirectory(dir=out.parent) as folder,
        ):
            command = [
                *("xorriso", "-no_rc", "-abort_on", "FAILURE", "-report_about", "SORRY"),
                # Names on the CD are names, whatever characters they have.
                *("-iso_rr_pattern", "off", "-disk_pattern", "off"),
                *("-joliet", "on" if cd.joliet else "off"),
                *("-indev", f"stdio:/proc/self/fd/{file.fileno()}"),
                *("-outdev", f"stdio:{out.absolute()}", "-boot_image", "any", "replay"),
                *(word for name in dropped for word in ("-rm", name, "--")),
                *_map(image, place),
            ]
            for number, (name, sums) in enumerate(_new_sums(cd, image, file.fileno())):
                kept = Path(folder, str(number))
                kept.write_bytes(sums)
                command += _map(kept, name)
            command += ["-commit", "-end"]
            code = _run(command, file.fileno(), errors.fileno(), out, total, progress)
            said = _said(errors, cd)
    except OSError as err:
        raise storage_error(tr("cannot write {path}", path=out), err) from err
    if code:
        if os.strerror(errno.ENOSPC) in said:
            raise StorageError(
                tr("cannot write {out}: {said}", out=out, said=said[:300]), errno=errno.ENOSPC
            )
        raise FormatError(
            tr("xorriso cannot write {cd} again: {said}", cd=cd.name, said=said[:300] or code)
        )
    _check(cd, image, out)


def _said(errors: IO[bytes], cd: LiveCd) -> str:
    """The words of xorriso."""
    errors.seek(0)
    told = with_name(errors.read(4096).decode("utf-8", "replace"), cd.name)
    return " ".join(told.split())


def _map(file: Path, place: str) -> list[str]:
    """The commands that put a file onto the CD, as root's."""
    owner = [*("-chown", "0", place, "--"), *("-chgrp", "0", place, "--")]
    return ["-map", str(file.absolute()), place, *owner, "-chmod", "0444", place, "--"]


def _new_sums(cd: LiveCd, image: Path, fd: int) -> Iterator[tuple[str, bytes]]:
    """The lists of checksums that name the image, with its new one."""
    tree = read_volume(fd, cd.path.stat().st_size).trees[0]

    @cache  # a list may name the image a hundred thousand times
    def digest(algorithm: str) -> bytes:
        with image.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest().encode()

    for name in _SUMS:
        entry = tree.find(name)
        if entry is None or entry.fault or entry.directory:
            continue
        extents = Extents(entry.extents)
        if not 0 < extents.size <= _MAX_SUMS:
            continue
        lines = extents.pread(fd, extents.size, 0).splitlines()
        changed = [line for line in (_new_sum(cd, digest, line) for line in lines) if line]
        if changed != lines:
            yield "/" + name, b"\n".join([*changed, b""])


def _new_sum(cd: LiveCd, digest: Callable[[str], bytes], line: bytes) -> bytes:
    """A line of such a list; nothing where its file is dropped."""
    found = _SUM.fullmatch(line)
    names = [part.name.lower().encode() for part in cd.images]
    if found is None or found[3].lower() not in names:
        return line
    if found[3].lower() != names[0]:
        return b""
    return line.replace(found[1], digest(_ALGORITHMS[len(found[1])]), 1)


def _run(
    command: list[str], fd: int, errors: int, out: Path, total: int, progress: Callable[..., None]
) -> int:
    process = start_tool(command, fd, package="xorriso", memory=_MEMORY, errors=errors)
    with process:
        try:
            while True:
                try:
                    process.communicate(timeout=_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    if out.exists():
                        progress(min(out.stat().st_size, total), total)
                else:
                    return process.returncode
        except BaseException:
            process.kill()
            raise


def _check(cd: LiveCd, image: Path, out: Path) -> None:
    """Compare what is on the new CD with what should be."""
    found = inspect_file(out)
    wanted = [(cd.images[0].name, image.stat().st_size)]
    if [(part.name, part.extents.size) for part in found.parts] != wanted:
        raise FormatError(
            tr("xorriso has not put the image into its place on {cd}", cd=cd.name),
            hint="the CD's directories may be of a kind that it does not read",
        )
