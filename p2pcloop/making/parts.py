"""Finding the parts of a file that are the image: all of it, files on a CD, or a partition."""

from __future__ import annotations

import os
from pathlib import Path

from p2pcloop.errors import FormatError, UsageError
from p2pcloop.formats.boot_parameters import MAX_ROOTS
from p2pcloop.formats.cloop import HEADER_SIZE as CLOOP_HEADER_SIZE
from p2pcloop.formats.cloop import is_cloop
from p2pcloop.formats.extents import Extents
from p2pcloop.formats.filesystem import PROBE_SIZE, ROOT_TYPES, describe, detect_filesystem
from p2pcloop.formats.iso import IsoFile, read_iso
from p2pcloop.formats.partitions import Partition, read_partitions
from p2pcloop.making.image_file import Part
from p2pcloop.units import format_size
from p2pcloop.words import tr

_MAX_LISTED = 12
_CLOSED = ("LVM2_member", "crypto_LUKS", "BitLocker", "linux_raid_member")
"""Partitions with file systems that are not seen."""


def find_parts(fd: int, size: int, name: Path) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Find the parts of a CD image that are the image, from base to top; else the CD itself.

    Args:
        fd: of the CD image.
        size: its bytes.
        name: of it, for messages.

    Returns:
        The parts, and remarks on files that were left out.

    Raises:
        FormatError: it is damaged or cut off, or holds a KNOPPIX that cannot be read.
        UsageError: it is a live CD of an unknown kind.
        OSError: the system refused.
    """
    try:
        iso = read_iso(fd, size)
        if len(iso.images) > MAX_ROOTS:
            raise FormatError(
                tr(
                    "it has {images_count} images, and at most {max_roots} are joined",
                    images_count=len(iso.images),
                    max_roots=MAX_ROOTS,
                ),
                hint="mount it, and seed the one that is its root",
            )
        parts = tuple(_to_part(fd, file) for file in iso.images)
    except FormatError as err:
        raise FormatError(tr("{name}: {err}", name=name, err=err), hint=err.hint) from err
    if iso.unknown:
        more = len(iso.unknown) - _MAX_LISTED
        found = ", ".join(iso.unknown[:_MAX_LISTED]) + (
            tr(" and {more} more", more=more) if more > 0 else ""
        )
        raise UsageError(
            tr("{name} is a live CD of a kind that is not known: {found}", name=name, found=found),
            hint="mount it, and seed the one of these that is its root; --raw takes the CD itself",
        )
    return parts or (Part("", "raw", Extents([(0, size)])),), iso.notes


def _to_part(fd: int, file: IsoFile) -> Part:
    head = file.extents.pread(fd, PROBE_SIZE, 0)
    tail_at = max(0, file.extents.size - CLOOP_HEADER_SIZE)
    if is_cloop(head, file.extents.pread(fd, CLOOP_HEADER_SIZE, tail_at)):
        return Part(file.name, "cloop", file.extents)
    found = detect_filesystem(head)
    if found in ROOT_TYPES:
        return Part(file.name, "raw", file.extents)
    what = tr("is {found}", found=describe(found)) if found else tr("may be encrypted")
    raise FormatError(
        tr(
            "{file} on it is neither a cloop nor a file system that is known: it {what}",
            file=file.name,
            what=what,
        ),
        hint="decrypt or unpack it, and seed what comes out",
    )


def find_partition(fd: int, size: int, number: int, name: Path) -> Part:
    """Find the partition of a disk that holds the root.

    Args:
        fd: of the disk.
        size: its bytes.
        number: of the partition; 0 to find it.
        name: of the disk, for messages.

    Raises:
        FormatError: its table is damaged, or it is cut off.
        UsageError: there is no such partition, or none or several could be the root.
        OSError: the system refused.
    """
    try:
        table = read_partitions(lambda at, length: os.pread(fd, length, at), size)
    except FormatError as err:
        raise FormatError(tr("{name}: {err}", name=name, err=err), hint=err.hint) from err
    heads = {each.number: os.pread(fd, PROBE_SIZE, each.offset) for each in table}
    if number:
        chosen = [each for each in table if each.number == number]
    else:
        chosen = _may_be_root(table, heads)
    if len(chosen) == 1:
        part = chosen[0]
        return Part(
            tr("partition {number}", number=part.number), "raw", Extents([(part.offset, part.size)])
        )
    listed = "; ".join(_describe(each, heads[each.number]) for each in table[:_MAX_LISTED])
    if number:
        what = tr("has no partition {number}", number=number)
    elif chosen:
        what = tr("has several partitions that may be the root")
    else:
        what = tr(
            "has no partition that is known to be a root ({root_types})",
            root_types=", ".join(ROOT_TYPES),
        )
    hint = tr("choose one with --partition N; --raw takes the whole disk")
    if any(detect_filesystem(head) == "LVM2_member" for head in heads.values()):
        hint += tr("; of LVM seed the volume (`losetup -fP`, `vgchange -ay`, /dev/GROUP/VOLUME)")
    raise UsageError(
        tr("{name} {what}: {listed}", name=name, what=what, listed=listed or tr("none at all")),
        hint=hint,
    )


def _may_be_root(table: tuple[Partition, ...], heads: dict[int, bytes]) -> list[Partition]:
    """The partitions that the table calls a root; else all that can be a root and nothing else.

    None if the root may be on a partition that cannot be read: others may be its /boot or /home.
    """
    kinds = {each.number: detect_filesystem(heads[each.number]) for each in table}
    named = [each for each in table if each.use == "root"]
    if named or any(kinds[each.number] in _CLOSED for each in table):
        return [each for each in named if kinds[each.number] in ROOT_TYPES]
    return [
        each
        for each in table
        if kinds[each.number] in ROOT_TYPES and not each.use and not _is_boot(heads[each.number])
    ]


def _is_boot(head: bytes) -> bool:
    """Whether an ext file system was mounted on /boot when it was written last, or is called so
    (kernel, fs/ext4/ext4.h: s_last_mounted, s_volume_name)."""
    if not detect_filesystem(head).startswith("ext"):
        return False
    label, mounted = (head[at : at + 64].partition(b"\0")[0] for at in (1144, 1160))
    return mounted == b"/boot" or label[:16].lower() == b"boot"


def _describe(partition: Partition, head: bytes) -> str:
    found = describe(detect_filesystem(head))
    use = f", {partition.use}" if partition.use else ""
    return f"{partition.number} ({found}{use}, {format_size(partition.size)})"
