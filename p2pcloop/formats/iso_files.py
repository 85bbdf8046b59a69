"""The files of an ISO 9660 file system, read one directory at a time; see `FileTree`.

The number of an inode is the place of its directory record in the device. Names are those that
Linux shows: Rock Ridge, else Joliet, else the plain ones in lower case without a version.

Sources: as of iso9660.py. A deep directory is moved by Rock Ridge and named by a CL field (P1282,
4.1.5).
"""

from __future__ import annotations

import calendar
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from p2pcloop.errors import FormatError
from p2pcloop.formats.file_tree import (
    MAX_LINK,
    MAX_NAME,
    Entry,
    Inode,
    Part,
    Prepare,
    Read,
    Run,
    prepare_nothing,
)
from p2pcloop.formats.iso9660 import (
    AGAIN,
    JOLIET,
    MAGIC,
    MAX_DIRECTORY,
    MAX_EXTENTS,
    SYSTEM_AREA,
    LinkTarget,
    system_use_fields,
)
from p2pcloop.words import tr

_SECTOR = 2048
_PART = 8 * _SECTOR
"""Bytes of a directory that are read in one call."""

_MAX_CONTINUED = 512 << 10
"""Bytes of continuation areas that are read in one call: of `_PART` with links of 2 KiB each 320
KiB. Each field of 4 bytes costs time."""

_MAX_DESCRIPTORS = 64
_MAX_RECORD = 255
_ROOT_RECORD = 156
_DIRECTORY, _ASSOCIATED, _MORE = 0x02, 0x04, 0x80


@dataclass(frozen=True, slots=True)
class IsoInode(Inode):
    """An inode of a CD.

    Attributes:
        extents: places of its content in the device: offset, length.
        link: the target of a symbolic link.
        fault: why its content cannot be read, or "".
    """

    extents: tuple[tuple[int, int], ...] = ()
    link: bytes = b""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class _Record:
    """A directory record (ECMA-119, 9.1)."""

    place: int
    identifier: bytes
    flags: int
    extent: tuple[int, int]
    changed: int
    interleaved: bool
    system_use: bytes


class IsoFiles:
    """A CD; see `FileTree`."""

    def __init__(self, read: Read, size: int, prepare: Prepare = prepare_nothing) -> None:
        """Read the volume descriptors, and look for Rock Ridge.

        Args:
            read: reads the device.
            size: bytes of the device.
            prepare: see `Prepare`.

        Raises:
            FormatError: it is no CD, or its values are impossible.
        """
        self._read = read
        self._prepare = prepare
        self._size = size
        self._block = _SECTOR
        self._left = _MAX_CONTINUED
        primary = joliet = 0
        for number in range(_MAX_DESCRIPTORS):
            place = SYSTEM_AREA + number * _SECTOR
            data = read(place, _SECTOR) if place + _SECTOR <= size else b""
            if data[1:6] != MAGIC or data[0] == 255:
                break
            if data[0] == 1 and not primary:
                primary = place
                (self._block,) = struct.unpack_from("<H", data, 128)
            elif data[0] == 2 and data[88:91] in JOLIET and not joliet:
                joliet = place
        if not primary or self._block not in (512, 1024, 2048):
            raise FormatError("it has no volume descriptor of a CD", hint=AGAIN)
        self.root = primary + _ROOT_RECORD
        self._skip, self._rock_ridge = self._find_rock_ridge()
        self._joliet = bool(joliet) and not self._rock_ridge
        if self._joliet:
            self.root = joliet + _ROOT_RECORD

    def inode(self, number: int) -> IsoInode:
        """See `FileTree.inode`."""
        self._left = _MAX_CONTINUED
        record = self._record(number)
        mode = stat.S_IFDIR | 0o555 if record.flags & _DIRECTORY else stat.S_IFREG | 0o444
        target = LinkTarget()
        fault = tr("its content is interleaved with others'") if record.interleaved else ""
        for tag, data in self._fields(record):
            if tag == b"PX" and len(data) >= 4:
                (mode,) = struct.unpack_from("<I", data)
                mode &= 0xFFFF
            elif tag == b"SL":
                target.add(data)
            elif tag == b"ZF":
                fault = tr("it is compressed by zisofs")
            elif tag == b"CL" and len(data) >= 4:
                return self._moved(number, struct.unpack_from("<I", data)[0] * self._block)
        if stat.S_ISLNK(mode):
            link = target.raw()
            return IsoInode(number, mode, len(link), record.changed, link=link)
        extents = self._extents(record)
        size = sum(length for _, length in extents)
        return IsoInode(number, mode, size, record.changed, extents, fault=fault)

    def entries(self, folder: IsoInode, start: int = 0) -> Part:
        """See `FileTree.entries`. A part begins at a byte of the directory, and knows whether the
        record before is of the same file: twice the byte, and 1 if so."""
        self._left = _MAX_CONTINUED
        at, more = start >> 1, bool(start & 1)
        found: list[Entry] = []
        records, end = self._records(folder, at)
        for record in records:
            goes_on, more = more, bool(record.flags & _MORE)
            if goes_on or record.flags & _ASSOCIATED or record.identifier in (b"\0", b"\1"):
                continue
            name, kind = self._shown(record)
            if name and name not in (b".", b"..") and not {0, 0x2F} & set(name):
                found.append(Entry(name, record.place, kind))
        return found, None if end is None else end << 1 | more

    def target(self, link: IsoInode) -> bytes:
        """See `FileTree.target`."""
        if not stat.S_ISLNK(link.mode) or not 0 < len(link.link) < MAX_LINK:
            raise FormatError("a symbolic link of the CD is damaged", hint=AGAIN)
        return link.link

    def runs(self, file: IsoInode, offset: int, length: int) -> Iterator[Run]:
        """See `FileTree.runs`."""
        if file.fault:
            raise FormatError(
                tr("a file of the CD is not read: {fault}", fault=file.fault), hint="mount disk.img"
            )
        end = min(offset + length, file.size)
        start = 0
        for place, size in file.extents:
            skip = max(0, offset - start)
            count = min(start + size, end) - start - skip
            if count > 0:
                if place + skip + count > self._size:
                    raise FormatError("a file lies beyond the end of the CD", hint=AGAIN)
                yield count, place + skip
            start += size

    def _moved(self, number: int, place: int) -> IsoInode:
        """The inode of a directory that Rock Ridge moved: its own record tells its length."""
        record = self._record(place)
        mode = stat.S_IFDIR | 0o555
        return IsoInode(number, mode, record.extent[1], record.changed, (record.extent,))

    def _find_rock_ridge(self) -> tuple[int, bool]:
        """The bytes to skip in each system use area (SUSP, SP), and whether it has Rock Ridge."""
        first = self._record(self._record(self.root).extent[0])
        area = first.system_use
        if area[:2] == b"SP" and len(area) >= 7:
            return area[6], True
        fields = system_use_fields(area, self._block, self._take)
        return 0, any(tag in (b"PX", b"RR") for tag, _ in fields)

    def _fields(self, record: _Record) -> Iterator[tuple[bytes, bytes]]:
        if self._rock_ridge:
            area = record.system_use[self._skip :]
            yield from system_use_fields(area, self._block, self._take_more)

    def _shown(self, record: _Record) -> tuple[bytes, int]:
        """The name that is shown, and the kind. The name is empty for what is not shown: a
        directory in the place to which Rock Ridge moved it, and a name that no system takes."""
        name = bytearray()
        kind = stat.S_IFDIR if record.flags & _DIRECTORY else stat.S_IFREG
        for tag, data in self._fields(record):
            if tag == b"RE":
                return b"", 0
            if tag == b"NM" and data and not data[0] & 0x06:
                name += data[1:]
                if len(name) > MAX_NAME:
                    return b"", 0
            elif tag == b"PX" and len(data) >= 4:
                kind = stat.S_IFMT(struct.unpack_from("<I", data)[0] & 0xFFFF)
            elif tag == b"CL":
                kind = stat.S_IFDIR
        if name:
            return bytes(name), kind
        if self._joliet:
            text = record.identifier.decode("utf-16-be", "replace").partition(";")[0]
            return text.encode(), kind
        return record.identifier.partition(b";")[0].rstrip(b".").lower(), kind

    def _extents(self, record: _Record) -> tuple[tuple[int, int], ...]:
        """The places of a file; one of several has a record for each, one behind the other."""
        extents = [record.extent]
        place = record.place
        while record.flags & _MORE:
            place += self._take(place, 1)[0]
            if place % _SECTOR and not self._take(place, 1)[0]:  # no record crosses a sector's end
                place = (place // _SECTOR + 1) * _SECTOR
            record = self._record(place)
            extents.append(record.extent)
            if len(extents) > MAX_EXTENTS:
                raise FormatError("a file of the CD lies in too many extents", hint=AGAIN)
        return tuple(extents)

    def _records(self, folder: IsoInode, at: int) -> tuple[list[_Record], int | None]:
        """Records of a directory from byte `at` on, and the byte after them; None at the end."""
        if not stat.S_ISDIR(folder.mode):
            raise FormatError("what is looked into is no directory", hint=AGAIN)
        if folder.size > MAX_DIRECTORY:
            raise FormatError(
                tr(
                    "a directory of the CD is longer than {max_directory} bytes",
                    max_directory=MAX_DIRECTORY,
                )
            )
        [(start, length)] = folder.extents[:1]
        if not at:
            self._prepare([(start, length)])
        first, size = at, min(_PART, length - at)
        data = self._take(start + first, size)
        found: list[_Record] = []
        while at < first + size:
            taken = data[at - first]
            if not taken:
                at = (at // _SECTOR + 1) * _SECTOR
                continue
            if at + taken > first + size < length and found:
                break  # it goes on in the next part
            found.append(self._parse(data[at - first : at - first + taken], start + at))
            at += taken
        return found, at if at < length else None

    def _record(self, place: int) -> _Record:
        data = self._take(place, min(_MAX_RECORD, max(0, self._size - place)))
        return self._parse(data[: data[0]] if data else b"", place)

    def _parse(self, data: bytes, place: int) -> _Record:
        if len(data) < 34 or len(data) < data[0]:
            raise FormatError("a directory of the CD is damaged", hint=AGAIN)
        (block,) = struct.unpack_from("<I", data, 2)
        (length,) = struct.unpack_from("<I", data, 10)
        end = 33 + data[32]
        return _Record(
            place=place,
            identifier=data[33:end],
            flags=data[25],
            extent=((block + data[1]) * self._block, length),
            changed=_seconds(data[18:25]),
            interleaved=bool(data[26] or data[27]),
            system_use=data[end + end % 2 :],
        )

    def _take_more(self, offset: int, length: int) -> bytes:
        """Read a continuation area, as long as the call is within its bound."""
        self._left -= length
        if self._left < 0:
            raise FormatError("a directory of the CD has too many continuation areas", hint=AGAIN)
        return self._take(offset, length)

    def _take(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            raise FormatError("the CD names places beyond its end", hint=AGAIN)
        return self._read(offset, length)


def _seconds(date: bytes) -> int:
    """Seconds since 1970 of a date (ECMA-119, 9.1.5); of an impossible one some other number."""
    year, month, day, hour, minute, second, zone = struct.unpack("<6Bb", date)
    if not 1 <= month <= 12:
        return 0
    seconds: int = calendar.timegm((1900 + year, month, day, hour, minute, second))
    return seconds - 900 * int(zone)
