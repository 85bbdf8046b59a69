"""The directories of an ISO 9660 file system, read one at a time when they are needed.

Sources: ECMA-119; SUSP (IEEE P1281) and Rock Ridge (IEEE P1282) for POSIX names and symbolic links;
Joliet (Microsoft, 1995). No other part is read: path tables, boot catalogs, UDF structures and
other folders may hold anything. An odd entry has a `fault`; only a caller that needs the entry
refuses it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

from p2pcloop.errors import FormatError
from p2pcloop.formats.extents import Extents
from p2pcloop.formats.file_tree import MAX_LINK
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

SYSTEM_AREA = 32768
"""Bytes before the first volume descriptor (ECMA-119, 6.2.1)."""

MAGIC = b"CD001"
MAX_READ = 8 << 20
"""Bytes of all directories that are read, with continuation areas: 40,000 files. At worst they take
5 s and 150 MB."""

MAX_DIRECTORY = 4 << 20
MAX_EXTENTS = 4096
"""16 TiB in extents of 4 GiB."""

_SECTOR = 2048
_MAX_DESCRIPTORS = 64
_MAX_CONTINUATIONS = 32
_MAX_LINKS = 16
_DIRECTORY, _ASSOCIATED, _MORE = 0x02, 0x04, 0x80
"""Flags of a file (ECMA-119, 9.1.6)."""

JOLIET = (b"%/@", b"%/C", b"%/E")
"""Escape sequences of a volume descriptor whose names are Unicode (Joliet)."""

AGAIN = tr("fetch or copy it again")
_MOUNT = tr("mount it, and seed the file on it that is the image")
_ZISOFS = tr("is compressed by zisofs")
_INTERLEAVED = tr("is interleaved with other files, which is not read")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a directory.

    Attributes:
        name: in its tree.
        directory: whether it is one.
        extents: its places in the CD image, offset and length in bytes.
        link: the target of a symbolic link, else None.
        fault: why its bytes are not those of a file: "is interleaved with other files", ...
    """

    name: str
    directory: bool
    extents: tuple[tuple[int, int], ...]
    link: str | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """A CD.

    Attributes:
        name: of the volume.
        claimed: its bytes by its descriptor.
        boots: whether a machine can boot from it (El Torito).
        trees: its directory trees, the one with the fullest names first, as Linux prefers them.
    """

    name: str
    claimed: int
    boots: bool
    trees: tuple[Tree, ...]


class Tree:
    """One of the directory trees of a CD.

    Attributes:
        names: the kind of its file names: "Rock Ridge", "Joliet" or "ISO 9660".
    """

    def __init__(self, names: str, root: Entry, records: Callable[[Entry], list[Entry]]) -> None:
        """`records` reads a directory."""
        self.names = names
        self._root = root
        self._records = records
        self._known: dict[tuple[tuple[int, int], ...], dict[str, Entry]] = {}

    def entries(self, path: str) -> dict[str, Entry]:
        """The entries of a directory, by names in lower case; none if there is no such directory.

        Raises:
            FormatError: the directory is damaged.
        """
        found = self._walk(path.split("/") if path else [])
        return self._load(found) if found is not None and found.directory else {}

    def find(self, path: str) -> Entry | None:
        """The entry of a path, in any case of its letters; symbolic links are followed.

        Raises:
            FormatError: a directory on the way is damaged.
        """
        return self._walk(path.split("/"))

    def _load(self, folder: Entry) -> dict[str, Entry]:
        if folder.extents not in self._known:
            found: dict[str, Entry] = {}
            for entry in self._records(folder):
                found.setdefault(entry.name.lower(), entry)
            self._known[folder.extents] = found
        return self._known[folder.extents]

    def _walk(self, names: list[str]) -> Entry | None:
        way = [self._root]
        left = names[::-1]
        links = 0
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            if name == "..":
                way = way[:-1] or way
                continue
            entry = self._load(way[-1]).get(name.lower()) if way[-1].directory else None
            if entry is None:
                return None
            if entry.link is None:
                way.append(entry)
                continue
            links += 1
            if links > _MAX_LINKS or not entry.link:
                return None
            if entry.link.startswith("/"):
                way = way[:1]
            left += entry.link.split("/")[::-1]
        return way[-1]


def advice(fault: str) -> str:
    """A hint for an entry that is needed and has a fault."""
    return _MOUNT if fault in (_ZISOFS, _INTERLEAVED) else AGAIN


def is_iso(head: bytes) -> bool:
    """Whether a file claims to be a CD image, by its first 32,774 bytes."""
    return head[SYSTEM_AREA + 1 : SYSTEM_AREA + 1 + len(MAGIC)] == MAGIC


def read_volume(fd: int, size: int) -> Volume:
    """Read the volume descriptors of a CD image (ECMA-119, 8).

    Args:
        fd: of the CD image; the trees read from it later.
        size: its bytes.

    Raises:
        FormatError: there is no primary one, or its values are impossible.
    """
    reader = _Reader(fd, size)
    primary = joliet = None
    boots = False
    for descriptor in reader.descriptors():
        if descriptor[0] == 1:
            primary = primary or descriptor
        elif descriptor[0] == 2 and descriptor[88:91] in JOLIET:
            joliet = joliet or descriptor
        elif descriptor[0] == 0 and descriptor[7:30] == b"EL TORITO SPECIFICATION":
            boots = True
    if primary is None:
        raise FormatError("it has no primary volume descriptor", hint=AGAIN)
    reader.block_size = _block_size(primary)
    # If the two byte orders differ, take the smaller number: neither then claims too much.
    claimed = min(_both("I", primary, 80))
    root = reader.root(primary)
    # Look at its own names: the Rock Ridge of some CDs has no ER field.
    trees = []
    skip, has_rock_ridge = reader.rock_ridge(root)
    if has_rock_ridge:
        trees.append(Tree("Rock Ridge", root, lambda folder: reader.read(folder, skip, _posix)))
    if joliet is not None:
        trees.append(
            Tree("Joliet", reader.root(joliet), lambda folder: reader.read(folder, skip, _joliet))
        )
    trees.append(Tree("ISO 9660", root, lambda folder: reader.read(folder, skip, _plain)))
    name = clean(primary[40:72].decode("utf-8", "replace"))
    return Volume(name, claimed * reader.block_size, boots, tuple(trees))


def clean(text: str) -> str:
    """Text of a CD as one line that is safe on a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text.strip().strip("\0"))


def _block_size(primary: bytes) -> int:
    sizes = _both("H", primary, 128)
    for size in sizes:
        if size in (512, 1024, 2048):
            return size
    raise FormatError(
        tr("its blocks have {sizes} bytes, which no CD has", sizes=sizes[0]), hint=AGAIN
    )


def _both(form: str, data: bytes, offset: int) -> tuple[int, int]:
    """A number that is stored in both byte orders, little endian first (ECMA-119, 7.2.3, 7.3.3)."""
    little: int = struct.unpack_from(f"<{form}", data, offset)[0]
    big: int = struct.unpack_from(f">{form}", data, offset + struct.calcsize(form))[0]
    return little, big


@dataclass(frozen=True, slots=True)
class _Record:
    """A directory record (ECMA-119, 9.1), and its system use area."""

    identifier: bytes
    flags: int
    extent: tuple[int, int]
    fault: str
    system_use: bytes


class _Reader:
    """Reads directories, within a bound for all of them."""

    def __init__(self, fd: int, size: int) -> None:
        self.block_size = _SECTOR
        self._fd = fd
        self._size = size
        self._left = MAX_READ

    def descriptors(self) -> Iterator[bytes]:
        for number in range(_MAX_DESCRIPTORS):
            data = os.pread(self._fd, _SECTOR, SYSTEM_AREA + number * _SECTOR)
            if len(data) < _SECTOR or data[1:6] != MAGIC or data[0] == 255:
                return
            yield data

    def root(self, descriptor: bytes) -> Entry:
        """The root directory, whose record is in the volume descriptor (ECMA-119, 8.4.18)."""
        record = self._record(descriptor[156:190])
        return Entry("", directory=True, extents=(record.extent,), fault=record.fault)

    def rock_ridge(self, root: Entry) -> tuple[int, bool]:
        """The bytes to skip in each system use area (SUSP, SP), and whether it has Rock Ridge."""
        skip, found = 0, False
        for number, record in enumerate(self._records(root)):
            if number == 0 and record.system_use[:2] == b"SP" and len(record.system_use) >= 7:
                skip, found = record.system_use[6], True
            elif any(tag in (b"NM", b"PX") for tag, _ in self._fields(record.system_use[skip:])):
                return skip, True
            elif number > 16:
                break
        return skip, found

    def read(
        self, folder: Entry, skip: int, name_of: Callable[[_Record, _Posix], str]
    ) -> list[Entry]:
        """The entries of a directory; one of several extents has a record for each."""
        found: list[Entry] = []
        more = False
        for record in self._records(folder):
            if record.flags & _ASSOCIATED or record.identifier in (b"\0", b"\1"):
                continue  # skip files of other systems, the folder itself, and the one above
            if more and found:
                extents = (*found[-1].extents, record.extent)
                fault = found[-1].fault or record.fault
                if len(extents) > MAX_EXTENTS:
                    extents, fault = (
                        extents[:1],
                        tr("lies in more than {max_extents} extents", max_extents=MAX_EXTENTS),
                    )
                found[-1] = replace(found[-1], extents=extents, fault=fault)
            else:
                posix = self._posix(record.system_use[skip:])
                directory = bool(record.flags & _DIRECTORY) and posix.link is None
                fault = record.fault or posix.fault
                name = clean(name_of(record, posix))
                found.append(Entry(name, directory, (record.extent,), posix.link, fault))
            more = bool(record.flags & _MORE)
        return found

    def _records(self, folder: Entry) -> list[_Record]:
        where, name = Extents(folder.extents), folder.name or "/"
        if folder.fault:
            raise FormatError(
                tr("the folder {name} {fault}", name=name, fault=folder.fault), hint=AGAIN
            )
        if where.size > MAX_DIRECTORY:
            raise FormatError(
                tr(
                    "the folder {name} is longer than {max_directory} bytes",
                    name=name,
                    max_directory=MAX_DIRECTORY,
                ),
                hint=_MOUNT,
            )
        data = self._take(where.start, where.size)
        if len(data) < where.size or data[32:34] != b"\1\0":
            raise FormatError(
                tr("there is no folder where {name} should be", name=name), hint=AGAIN
            )
        found: list[_Record] = []
        at = 0
        while at < len(data):
            length = data[at]
            if not length:  # no record crosses the end of a sector
                at = (at // _SECTOR + 1) * _SECTOR
                continue
            if length < 34 or at + length > len(data):
                raise FormatError(tr("the folder {name} is damaged", name=name), hint=AGAIN)
            found.append(self._record(data[at : at + length]))
            at += length
        return found

    def _record(self, data: bytes) -> _Record:
        (block, other_block), (length, other_length) = _both("I", data, 2), _both("I", data, 10)
        fault = ""
        if (block, length) != (other_block, other_length):
            fault = tr("is damaged: its place is told in two ways")
        elif data[26] or data[27]:
            fault = _INTERLEAVED
        end = 33 + data[32]
        identifier, system_use = data[33:end], data[end + (end % 2) :]
        offset = (block + data[1]) * self.block_size
        return _Record(identifier, data[25], (offset, length), fault, system_use)

    def _posix(self, area: bytes) -> _Posix:
        """The fields of Rock Ridge of an entry (P1282, 4.1)."""
        name, target = bytearray(), LinkTarget()
        linked = False
        fault = ""
        for tag, data in self._fields(area):
            if tag == b"NM" and data and not data[0] & 0x06:
                name += data[1:]
            elif tag == b"SL":
                linked = True
                target.add(data)
            elif tag == b"ZF":
                fault = _ZISOFS
        link = target.text() if linked else None
        return _Posix(name.decode("utf-8", "replace"), link, fault)

    def _fields(self, area: bytes) -> Iterator[tuple[bytes, bytes]]:
        return system_use_fields(area, self.block_size, self._take)

    def _take(self, offset: int, length: int) -> bytes:
        if length > self._left:
            raise FormatError(
                tr("its folders are longer than {max_read} bytes", max_read=MAX_READ), hint=_MOUNT
            )
        self._left -= length
        return os.pread(self._fd, length, offset) if offset < self._size else b""


def system_use_fields(
    area: bytes, block_size: int, take: Callable[[int, int], bytes]
) -> Iterator[tuple[bytes, bytes]]:
    """The fields of a system use area and of those that continue it (SUSP, 4 and 5.1).

    Args:
        area: of a directory record.
        block_size: bytes of the CD's blocks.
        take: reads the CD: offset, length.
    """
    for _ in range(_MAX_CONTINUATIONS):
        at, following = 0, b""
        while at + 4 <= len(area):
            tag, length = area[at : at + 2], area[at + 2]
            if length < 4 or at + length > len(area) or tag == b"ST":
                break
            data = area[at + 4 : at + length]
            if tag == b"CE" and len(data) >= 24:
                block, offset, size = struct.unpack_from("<I4xI4xI", data)
                following = take(block * block_size + offset, min(size, 1 << 16))
            else:
                yield tag, data
            at += length
        if not following:
            return
        area = following


@dataclass(frozen=True, slots=True)
class _Posix:
    """Parse the fields of Rock Ridge of an entry; `link` is "" if it is malformed."""

    name: str
    link: str | None
    fault: str


class LinkTarget:
    """The target of a symbolic link, from its SL fields (P1282, 4.1.3).

    One of `MAX_LINK` bytes or more is malformed.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._goes_on = False
        self._bad = False

    def add(self, data: bytes) -> None:
        """Take the next field."""
        at = len(data) if self._bad else 1
        while at < len(data):
            flags, length = data[at], data[at + 1] if at + 1 < len(data) else len(data)
            text = data[at + 2 : at + 2 + length]
            self._size += len(text) + 1
            if len(text) < length or self._size > MAX_LINK:
                self._bad = True
                return
            text = {0x02: b".", 0x04: b"..", 0x08: b""}.get(flags & 0x0E, text)
            if flags & 0x08:
                self._parts = [b""]
            elif self._goes_on and self._parts:
                self._parts[-1] += text
            else:
                self._parts.append(text)
            self._goes_on = bool(flags & 0x01)
            at += 2 + length

    def raw(self) -> bytes:
        """The target; empty if a field is malformed."""
        return b"" if self._bad else b"/".join(self._parts)

    def text(self) -> str:
        """The same as text."""
        return self.raw().decode("utf-8", "replace")


def _posix(record: _Record, posix: _Posix) -> str:
    return posix.name or _plain(record, posix)


def _joliet(record: _Record, _: _Posix) -> str:
    return record.identifier.decode("utf-16-be", "replace").partition(";")[0]


def _plain(record: _Record, _: _Posix) -> str:
    """A name without its version, and without the dot of an empty extension (ECMA-119, 7.5)."""
    return record.identifier.decode("utf-8", "replace").partition(";")[0].rstrip(".")
