"""Disks with partition tables, put together byte by byte."""

from __future__ import annotations

import struct
import zlib
from uuid import UUID

from p2pcloop.formats.partitions import OTHER_TYPES, ROOT_TYPES

LINUX = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ROOT = min(ROOT_TYPES)
BOOT, EFI, SWAP = (
    next(kind for kind, use in OTHER_TYPES.items() if use == wanted)
    for wanted in ("/boot", "EFI", "swap")
)

Parts = dict[int, tuple[UUID, bytes]]
"""By number: type, and content."""


def _entries(parts: Parts, sector: int) -> tuple[bytes, dict[int, bytes], int]:
    """Entries, content by offset, and where all ends."""
    table, at, content = bytearray(128 * 128), 1 << 20, {}
    for number, (kind, data) in parts.items():
        length = -(-len(data) // sector)
        first = at // sector
        packed = struct.pack(
            "<16s16sQQ", kind.bytes_le, bytes([number] * 16), first, first + length - 1
        )
        table[(number - 1) * 128 : (number - 1) * 128 + 48] = packed
        content[at] = data
        at += -(-length * sector // (1 << 20)) * (1 << 20)
    return bytes(table), content, at


def _header(here: int, other: int, entries: int, table: bytes, last: int) -> bytes:
    fields = (here, other, 34, last - 34, bytes(16), entries, 128, 128, zlib.crc32(table))
    head = struct.pack("<8sIIII", b"EFI PART", 0x10000, 92, 0, 0) + struct.pack(
        "<QQQQ16sQIII", *fields
    )
    return head[:16] + struct.pack("<I", zlib.crc32(head)) + head[20:]


def make_gpt(parts: Parts, sector: int = 512) -> bytes:
    """A disk with a GPT, a protective MBR before it, and the copy at its end."""
    table, content, end = _entries(parts, sector)
    table_sectors = len(table) // sector
    size = end + (1 << 20)
    last = size // sector - 1
    disk = bytearray(size)
    disk[446:512] = struct.pack("<4xB3xII", 0xEE, 1, last).ljust(64, b"\0") + b"\x55\xaa"
    disk[sector : sector + 92] = _header(1, last, 2, table, last)
    disk[2 * sector : 2 * sector + len(table)] = table
    backup = last - table_sectors
    disk[backup * sector : backup * sector + len(table)] = table
    disk[last * sector : last * sector + 92] = _header(last, 1, backup, table, last)
    for at, data in content.items():
        disk[at : at + len(data)] = data
    return bytes(disk)


def make_mbr(parts: dict[int, tuple[int, bytes]]) -> bytes:
    """A disk with an MBR; numbers from 5 on are logical, in the extended partition 4."""
    disk = bytearray(1 << 20)
    entries = [bytes(16)] * 4
    logical = 0
    base = 0
    for number, (kind, data) in sorted(parts.items()):
        at = len(disk)
        if number < 5:
            entries[number - 1] = struct.pack("<4xB3xII", kind, at // 512, len(data) // 512)
        else:
            base = base or at
            table = struct.pack("<4xB3xII", kind, 2048, len(data) // 512).ljust(64, b"\0")
            if logical:
                link = struct.pack("<4xB3xII", 5, (at - base) // 512, 1)
                disk[logical + 462 : logical + 478] = link
            logical = at
            disk += bytes(446) + table + b"\x55\xaa" + bytes((1 << 20) - 512)
        disk += data + bytes(-len(data) % (1 << 20))
    if base:
        entries[3] = struct.pack("<4xB3xII", 5, base // 512, (len(disk) - base) // 512)
    disk[446:512] = b"".join(entries) + b"\x55\xaa"
    return bytes(disk)
