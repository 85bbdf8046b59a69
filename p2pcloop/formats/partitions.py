"""Partition tables: GPT (UEFI Specification 2.10, 5.3), and MBR with its logical partitions."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from uuid import UUID

from p2pcloop.errors import FormatError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

MAX_PARTITIONS = 256
_SECTORS = (512, 4096)
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
"""magic, revision, header's length, its CRC, reserved, its place, the other one's, first and last
usable sector, id, place of the entries, their number, length and CRC."""

_BOOT_CODE_SIZE = 440
"""Bytes at the start of a disk that a BIOS runs (UEFI Specification 2.10, 5.2.1)."""

_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_DAMAGED = tr("its partition table (GPT) is damaged")
_AGAIN = "fetch or copy it again"

Read = Callable[[int, int], bytes]
"""Returns the bytes at an offset, of a length; fewer at the end of the file."""

ROOT_TYPES = {
    UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    UUID("44479540-f297-41b2-9af7-d131d5f0458a"),
}
"""GPT types of a root for x86 (The Discoverable Partitions Specification)."""

OTHER_TYPES = {
    UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172"): "/boot",
    UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"): "EFI",
    UUID("21686148-6449-6e6f-744e-656564454649"): "BIOS boot",
    UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"): "swap",
    UUID("933ac7e1-2eb4-4f13-b844-0e14e2aef915"): "/home",
    UUID("3b8f8425-20e0-4f3b-907f-1a25a76f98e8"): "/srv",
    UUID("4d21b016-b534-45c2-a9fb-5c16e091fd2d"): "/var",
    UUID("7ec6f557-3bc5-4aca-b293-16ef5df639d1"): "/var/tmp",  # noqa: S108  what it is mounted on
}
"""GPT types of partitions that are no root, with their uses."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition.

    Attributes:
        number: as Linux counts: of an MBR the primary ones are 1 to 4, logical ones from 5 on.
        offset, size: bytes.
        use: by the table ("root", "/boot", "EFI"), or "".
    """

    number: int
    offset: int
    size: int
    use: str = ""

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.offset + self.size


def read_partitions(read: Read, size: int) -> tuple[Partition, ...]:
    """Return the partitions of a disk, by number.

    Args:
        read: reads the disk.
        size: its bytes.

    Raises:
        FormatError: there is no table, it is damaged, or the disk is cut off.
    """
    # The first table may be gone: then the entry of the MBR that protects it tells of the copy.
    last = _last_protected(read)
    protected = last is not None
    for sector in _SECTORS:
        if read(sector, 8) == b"EFI PART":
            return tuple(_read_gpt(read, size, sector, last))
    for sector in _SECTORS if protected else ():
        if any(read(at, 8) == b"EFI PART" for at in _copies(size, sector, last)):
            return tuple(_read_gpt(read, size, sector, last))
    found = tuple(_read_mbr(read))
    if protected and len(found) == 1:
        raise FormatError(_DAMAGED, hint=_AGAIN)
    end = max((partition.end for partition in found), default=0)
    if end > size:
        raise FormatError(_cut_off(end, size), hint=_AGAIN)
    return found


def boots_by_uefi_alone(start: bytes) -> bool:
    """Whether a disk has a partition for UEFI's boot loaders, and no boot code for a BIOS.

    Args:
        start: its first 64 KiB, or all of a shorter one.
    """
    if any(start[:_BOOT_CODE_SIZE]):
        return False
    for sector in _SECTORS:
        # A copy at the end of the disk, which counts where this table is damaged, is not here.
        table, _ = _gpt_header(lambda at, length: start[at : at + length], sector, sector)
        kinds = [(table or b"")[at : at + 16] for at in range(0, len(table or b""), 128)]
        if any(any(kind) and OTHER_TYPES.get(UUID(bytes_le=kind)) == "EFI" for kind in kinds):
            return True
    return any(_mbr_use(kind) == "EFI" for kind, _, _ in _mbr_entries(start[:512]))


def _last_protected(read: Read) -> int | None:
    """The last sector of the disk, as the entry of the MBR says that protects a GPT; None if there
    is no such entry."""
    entries = [entry for entry in _mbr_entries(read(0, 512)) if entry[0] == _PROTECTIVE]
    return max((first + count - 1 for _, first, count in entries), default=None)


def _copies(size: int, sector: int, *lasts: int | None) -> list[int]:
    """Where the copy of a GPT may lie: at the end of the disk, or, if the disk was enlarged since,
    where it ended before: in one of these sectors."""
    found = [size - sector, *(last * sector for last in lasts if last)]
    return [at for at in found if sector < at <= size - sector]


def _read_gpt(read: Read, size: int, sector: int, protected: int | None) -> Iterator[Partition]:
    header, last = _gpt_header(read, sector, sector)
    if (end := (last + 1) * sector) > size:
        raise FormatError(_cut_off(end, size), hint=_AGAIN)
    if header is None:
        copies = (_gpt_header(read, at, sector) for at in _copies(size, sector, last, protected))
        header = next((entries for entries, _ in copies if entries is not None), None)
    if header is None:
        raise FormatError(_DAMAGED, hint=_AGAIN)
    for number in range(len(header) // 128):
        kind, first, end = struct.unpack_from("<16s16xQQ", header, number * 128)
        if any(kind) and first <= end and (end + 1) * sector <= size:
            used = UUID(bytes_le=kind)
            use = "root" if used in ROOT_TYPES else OTHER_TYPES.get(used, "")
            yield Partition(number + 1, first * sector, (end + 1 - first) * sector, use)


def _gpt_header(read: Read, at: int, sector: int) -> tuple[bytes | None, int]:
    """The entries of one of the two tables, cut to 128 bytes each, and the last sector it names."""
    data = read(at, 512)
    if len(data) < 512:
        return None, 0
    fields = _GPT_HEADER.unpack_from(data)
    magic, _, length, checksum, _, here, other, *_, entries, count, each, _ = fields
    if magic != b"EFI PART" or not 92 <= length <= 512 or each < 128 or each > 1024:
        return None, 0
    if zlib.crc32(data[:16] + bytes(4) + data[20:length]) != checksum:
        return None, 0
    if count > 1024 or count * each > 1 << 20:
        return None, 0
    table = read(entries * sector, count * each)
    if len(table) < count * each or zlib.crc32(table) != fields[-1]:
        return None, max(here, other)
    table = b"".join(table[n * each : n * each + 128] for n in range(min(count, MAX_PARTITIONS)))
    return table, max(here, other)


def _read_mbr(read: Read) -> Iterator[Partition]:
    for number, (kind, first, count) in enumerate(_mbr_entries(read(0, 512)), 1):
        if kind in _EXTENDED:
            yield from _read_logical(read, first)
        elif kind and count:
            yield Partition(number, first * 512, count * 512, _mbr_use(kind))


def _read_logical(read: Read, extended: int) -> Iterator[Partition]:
    """Each logical partition has a table of its own, which names the next, none twice."""
    at, seen = extended, set[int]()
    for number in range(5, MAX_PARTITIONS):
        if at in seen:
            return
        seen.add(at)
        entries = _mbr_entries(read(at * 512, 512))
        if not entries:
            return
        (kind, first, count), (next_kind, following, _) = entries[:2]
        if kind and count:
            yield Partition(number, (at + first) * 512, count * 512, _mbr_use(kind))
        if next_kind not in _EXTENDED or not following:
            return
        at = extended + following


def _mbr_entries(data: bytes) -> list[tuple[int, int, int]]:
    """Type, first sector and sectors of the four entries; none if it is no table."""
    if data[510:] != b"\x55\xaa":
        return []
    return [struct.unpack_from("<4xB3xII", data, at) for at in range(446, 510, 16)]


def _mbr_use(kind: int) -> str:
    return {0x82: "swap", 0xEF: "EFI"}.get(kind, "")


def _cut_off(claimed: int, size: int) -> str:
    return tr(
        "it is cut off: its partitions take {claimed} bytes, and {size} are here",
        claimed=claimed,
        size=size,
    )
