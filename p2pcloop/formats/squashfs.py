"""The files of a squashfs 4.0, read one structure at a time; see `FileTree`.

Inodes, directories and the list of fragments lie in metadata blocks of 8 KiB, each compressed by
itself. The number of an inode is the place of its metadata block and its offset there, and one. A
file is a row of blocks, each compressed by itself; its end may be a part of a block that several
files share, a fragment. What was decoded last is kept, up to 4 MiB: programs read files bit by bit.

Only the sizes of a file's blocks are stored, so where one lies is told by all sizes before it. They
are read in groups; of the files that were read last, where each group begins is kept.

Sources: the kernel's Documentation/filesystems/squashfs.rst, fs/squashfs/squashfs_fs.h and the
wrappers beside it: XZ blocks are whole .xz streams, zstd blocks whole frames that state their size;
LZO and LZ4 blocks are raw.
"""

from __future__ import annotations

import stat
import struct
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, TypeVar

from p2pcloop.errors import FormatError
from p2pcloop.formats.codec import decode_lz4_up_to, decode_xz_up_to, decode_zstd_up_to
from p2pcloop.formats.file_tree import (
    AGAIN,
    MAX_NAME,
    Entry,
    Inode,
    Part,
    Prepare,
    Read,
    Run,
    check_directory,
    check_link,
    prepare_nothing,
)
from p2pcloop.formats.lzo import decode_lzo_up_to
from p2pcloop.formats.zlib_stream import decode_block_up_to
from p2pcloop.words import tr

MAX_BLOCKS = 1 << 18
"""Blocks of a file that is read: 32 GiB with mksquashfs's own size of blocks. A read near the end
of a file goes through the sizes of all of them, and other readers wait meanwhile."""

DECODERS: dict[int, Callable[[bytes, int], bytes]] = {
    1: decode_block_up_to,
    3: decode_lzo_up_to,
    4: decode_xz_up_to,
    5: decode_lz4_up_to,
    6: decode_zstd_up_to,
}
"""What decodes a block, of which the most is known that it may hold; by the number of the
compression in the superblock."""

_LZMA = 2
"""No kernel reads it."""

_SUPERBLOCK = struct.Struct("<4sIIIIHHHHHHQQQQQQQQ")
_MAGIC = b"hsqs"
_METADATA = 8192
_PLAIN_METADATA = 1 << 15
_PLAIN_BLOCK = 1 << 24
_NO_FRAGMENT = 0xFFFFFFFF
_PER_BLOCK = _METADATA // 16
_ABSENT = 1 << 63
"""No table lies there: of one that is left out, the place is all ones."""

_KEPT_METADATA = 64
_KEPT_BLOCKS = 2
_KEPT_GROUPS = 8
_KEPT_ROWS = 32
_GROUP = _METADATA // 4
"""Blocks whose sizes are read at once: as many as a metadata block has."""

_INODE = struct.Struct("<HHHHII")
_FOLDER, _LONG_FOLDER = struct.Struct("<IIHHI"), struct.Struct("<IIIIHHI")
_FILE, _LONG_FILE = struct.Struct("<IIII"), struct.Struct("<QQQIIII")
_LINK = struct.Struct("<II")
_HEADER, _ENTRY = struct.Struct("<III"), struct.Struct("<HhHH")
_FRAGMENT = struct.Struct("<QII")
_KINDS = (
    *(0, stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK),
    *(stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK),
)
"""By the type of an inode; that of one with more fields is greater by 7."""

_MOST_ENTRIES = 256
_DOTS = 3
"""Bytes by which a directory claims to be longer: for `.` and `..`, which are not stored."""

_MOUNT = "mount disk.img"

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Place(NamedTuple):
    """A place in metadata: of its block, counted from the table's start, and in its content."""

    block: int
    offset: int


class _Group(NamedTuple):
    """Some blocks of a file: how each is stored, and where."""

    sizes: array[int]
    starts: array[int]


_Row = list[tuple[_Place, int]]
"""Of each group of a file's blocks, as far as they were read, and of the next one: where their
sizes are told, and where the first block lies."""


@dataclass(frozen=True, slots=True)
class SquashInode(Inode):
    """An inode of a squashfs.

    Attributes:
        place: of a directory's entries, a link's target, a file's row of blocks.
        start: of a file's first block in the device.
        fragment: the number of the fragment with the file's end; None if that is a block.
        within: the offset of the file's end in that fragment.
    """

    place: _Place
    start: int = 0
    fragment: int | None = None
    within: int = 0


class _Stored(NamedTuple):
    """A block in the device; 0 bytes stand for zeros."""

    place: int
    length: int
    plain: bool


class Squashfs:
    """A file system; see `FileTree`."""

    def __init__(self, read: Read, size: int, prepare: Prepare = prepare_nothing) -> None:
        """Read the superblock.

        Args:
            read: reads the device.
            size: bytes of the device.
            prepare: see `Prepare`.

        Raises:
            FormatError: it is none, is damaged, or is of a version or compression not read here.
        """
        self._read = read
        self._prepare = prepare
        self._size = size
        data = read(0, _SUPERBLOCK.size) if size >= _SUPERBLOCK.size else b""
        if data[:4] != _MAGIC:
            raise FormatError(tr("it has no superblock of squashfs"), hint=AGAIN)
        fields = _SUPERBLOCK.unpack(data)
        self._block, self._fragment_count, compression, shift = fields[3:7]
        version, (root, _used) = fields[9:11], fields[11:13]
        self._inodes, self._folders, self._fragments = fields[15:18]
        if version != (4, 0):
            raise FormatError(
                tr("its squashfs has version {major}.{minor}", major=version[0], minor=version[1]),
                hint=_MOUNT,
            )
        if compression not in DECODERS:
            told = tr("its squashfs is compressed by LZMA")
            if compression != _LZMA:
                told = tr(
                    "its squashfs is compressed by a method that is not known ({number})",
                    number=compression,
                )
            raise FormatError(told, hint=_MOUNT)
        if not 12 <= shift <= 20 or self._block != 1 << shift:
            raise FormatError(
                tr("the superblock of its squashfs has impossible values"), hint=AGAIN
            )
        self._decode = DECODERS[compression]
        self.root = root + 1
        self._metadata: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        self._decoded: OrderedDict[int, bytes] = OrderedDict()
        self._rows: OrderedDict[int, _Row] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()

    def inode(self, number: int) -> SquashInode:
        """Read an inode.

        Raises:
            FormatError: there is none of this number.
        """
        if number < 1:
            raise FormatError(tr("there is no inode {number}", number=number), hint=AGAIN)
        at = _Place(*divmod(number - 1, 1 << 16))
        head, at = self._take(self._inodes, at, _INODE.size)
        kind, mode, _, _, changed, _ = _INODE.unpack(head)
        mode = (mode & 0o7777) | (_KINDS[(kind - 1) % 7 + 1] if 1 <= kind <= 14 else 0)
        match stat.S_IFMT(mode):
            case stat.S_IFDIR:
                return self._folder(number, mode, changed, at, long=kind > 7)
            case stat.S_IFREG:
                return self._file(number, mode, changed, at, long=kind > 7)
            case stat.S_IFLNK:
                fields, at = self._take(self._inodes, at, _LINK.size)
                return SquashInode(number, mode, _LINK.unpack(fields)[1], changed, at)
            case 0:
                raise FormatError(tr("there is no inode {number}", number=number), hint=AGAIN)
        return SquashInode(number, mode, 0, changed, at)

    def entries(self, folder: SquashInode, start: int = 0) -> Part:
        """See `FileTree.entries`; a part is what has one header.

        Raises:
            FormatError: it is no directory, too large, or damaged.
        """
        check_directory(folder)
        done, at = _resumed(start) if start else (0, folder.place)
        if done + _DOTS >= folder.size:
            return [], None
        head, at = self._take(self._folders, at, _HEADER.size)
        count, block, _ = _HEADER.unpack(head)
        if count >= _MOST_ENTRIES:
            raise FormatError(tr("a directory of the squashfs is damaged"), hint=AGAIN)
        done += _HEADER.size
        found: list[Entry] = []
        for _ in range(count + 1):
            head, at = self._take(self._folders, at, _ENTRY.size)
            offset, _, kind, length = _ENTRY.unpack(head)
            if length + 1 > MAX_NAME or not 1 <= kind <= 7:
                raise FormatError(tr("a directory of the squashfs is damaged"), hint=AGAIN)
            name, at = self._take(self._folders, at, length + 1)
            done += _ENTRY.size + length + 1
            if b"/" not in name and b"\0" not in name and name not in (b".", b".."):
                found.append(Entry(name, (block << 16 | offset) + 1, _KINDS[kind]))
        return found, _resumption(done, at) if done + _DOTS < folder.size else None

    def target(self, link: SquashInode) -> bytes:
        """The target of a symbolic link.

        Raises:
            FormatError: it is no link, or its target is too long.
        """
        check_link(link)
        return self._take(self._inodes, link.place, link.size)[0]

    def runs(self, file: SquashInode, offset: int, length: int) -> Iterator[Run]:
        """The bytes of a file, and where those lie that are not compressed.

        Raises:
            FormatError: it is damaged, or too long.
        """
        end = min(offset + length, file.size)
        if offset >= end:
            return
        first, last = offset // self._block, (end - 1) // self._block
        blocks = [self._stored(file, number) for number in range(first, last + 1)]
        # Also those that are decoded: others of this read may push them out before their turn.
        self._prepare([each[:2] for each in blocks if each.length])
        for number, stored in enumerate(blocks, first):
            base = number * self._block - (file.within if self._is_fragment(file, number) else 0)
            last_byte = min(end, (number + 1) * self._block)
            yield self._run(stored, max(offset, number * self._block) - base, last_byte - base)

    def _run(self, stored: _Stored, start: int, stop: int) -> Run:
        """A part of the content of a block."""
        if not stored.length:
            return stop - start, None
        if stored.plain:
            if stop > stored.length:
                raise FormatError(
                    tr("a file of the squashfs is longer than its blocks"), hint=AGAIN
                )
            return stop - start, stored.place + start
        content = self._content(stored)
        if stop > len(content):
            raise FormatError(tr("a file of the squashfs is longer than its blocks"), hint=AGAIN)
        return stop - start, memoryview(content)[start:stop]

    def _folder(
        self, number: int, mode: int, changed: int, at: _Place, *, long: bool
    ) -> SquashInode:
        if long:
            fields, _ = self._take(self._inodes, at, _LONG_FOLDER.size)
            _, size, block, _, _, offset, _ = _LONG_FOLDER.unpack(fields)
        else:
            fields, _ = self._take(self._inodes, at, _FOLDER.size)
            block, _, size, offset, _ = _FOLDER.unpack(fields)
        return SquashInode(number, mode, size, changed, _Place(block, offset))

    def _file(self, number: int, mode: int, changed: int, at: _Place, *, long: bool) -> SquashInode:
        if long:
            fields, at = self._take(self._inodes, at, _LONG_FILE.size)
            start, size, _, _, fragment, within, _ = _LONG_FILE.unpack(fields)
        else:
            fields, at = self._take(self._inodes, at, _FILE.size)
            start, fragment, within, size = _FILE.unpack(fields)
        there = None if fragment == _NO_FRAGMENT else fragment
        return SquashInode(number, mode, size, changed, at, start, there, within)

    def _is_fragment(self, file: SquashInode, number: int) -> bool:
        """Whether a block of a file is a part of a fragment."""
        return file.fragment is not None and number == file.size // self._block

    def _stored(self, file: SquashInode, number: int) -> _Stored:
        """Where a block of a file is stored, or the fragment that stands for it."""
        if file.fragment is not None and self._is_fragment(file, number):
            return self._stored_fragment(file.fragment)
        if number >= MAX_BLOCKS:
            raise FormatError(
                tr("a file has more than {most} blocks", most=MAX_BLOCKS), hint=_MOUNT
            )
        at, index = divmod(number, _GROUP)
        group = self._group(file, at)
        return self._block_at(group.starts[index], group.sizes[index])

    def _group(self, file: SquashInode, number: int) -> _Group:
        """A group of a file's blocks; those before it are gone through, and that once."""
        known = _known(self._groups, (file.number, number))
        if known is not None:
            return known
        row = _known(self._rows, file.number)
        if row is None:
            begin = file.place, min(file.start, self._size)
            row = _keep(self._rows, file.number, [begin], _KEPT_ROWS)
        while len(row) <= number:
            self._read_group(file, row, len(row) - 1)
        group = self._read_group(file, row, number)
        return _keep(self._groups, (file.number, number), group, _KEPT_GROUPS)

    def _read_group(self, file: SquashInode, row: _Row, number: int) -> _Group:
        """Read a group, and note where the next one begins."""
        ends = 0 if file.fragment is not None else self._block - 1
        count = min(_GROUP, (file.size + ends) // self._block - number * _GROUP)
        place, start = row[number]
        data, after = self._take(self._inodes, place, 4 * count)
        sizes = struct.unpack(f"<{count}I", data)
        lengths = (size & ~_PLAIN_BLOCK for size in sizes)
        starts = array("Q", accumulate(lengths, initial=start))
        if number + 1 == len(row):
            row.append((after, min(starts[-1], self._size)))
        return _Group(array("I", sizes), starts)

    def _stored_fragment(self, number: int) -> _Stored:
        if number >= self._fragment_count or self._fragments >= _ABSENT:
            raise FormatError(tr("a file of the squashfs names no fragment"), hint=AGAIN)
        block, index = divmod(number, _PER_BLOCK)
        (table,) = struct.unpack("<Q", self._bytes(self._fragments + 8 * block, 8))
        data, _ = self._take(table, _Place(0, index * _FRAGMENT.size), _FRAGMENT.size)
        place, size, _ = _FRAGMENT.unpack(data)
        return self._block_at(place, size)

    def _block_at(self, place: int, size: int) -> _Stored:
        """A block, from what the file system tells as its size."""
        length = size & ~_PLAIN_BLOCK
        if length > self._block or place + length > self._size:
            raise FormatError(tr("a file of the squashfs is damaged"), hint=AGAIN)
        return _Stored(place, length, bool(size & _PLAIN_BLOCK))

    def _content(self, stored: _Stored) -> bytes:
        """The content of a block that is compressed."""
        content = _known(self._decoded, stored.place)
        if content is None:
            content = self._decode(self._bytes(stored.place, stored.length), self._block)
            _keep(self._decoded, stored.place, content, _KEPT_BLOCKS)
        return content

    def _take(self, table: int, at: _Place, length: int) -> tuple[bytes, _Place]:
        """Bytes of metadata, and the place behind them."""
        block, offset = at
        found = bytearray()
        while len(found) < length:
            content, following = self._metadata_block(table + block)
            if offset >= len(content):
                # Only a table's last block may be short: so a few bytes lie in few blocks.
                if offset > len(content) or len(content) < _METADATA:
                    raise FormatError(tr("its squashfs names no place in metadata"), hint=AGAIN)
                block, offset = following - table, 0
                continue
            part = content[offset : offset + length - len(found)]
            found += part
            offset += len(part)
        return bytes(found), _Place(block, offset)

    def _metadata_block(self, place: int) -> tuple[bytes, int]:
        """The content of a metadata block, and where the next one lies."""
        known = _known(self._metadata, place)
        if known is not None:
            return known
        (header,) = struct.unpack("<H", self._bytes(place, 2))
        length = header & ~_PLAIN_METADATA or _PLAIN_METADATA
        if length > _METADATA:
            raise FormatError(tr("a metadata block of the squashfs is damaged"), hint=AGAIN)
        stored = self._bytes(place + 2, length)
        content = stored if header & _PLAIN_METADATA else self._decode(stored, _METADATA)
        return _keep(self._metadata, place, (content, place + 2 + length), _KEPT_METADATA)

    def _bytes(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            raise FormatError(tr("its squashfs names places beyond the device's end"), hint=AGAIN)
        return self._read(offset, length)


def _known(kept: OrderedDict[Key, Value], key: Key) -> Value | None:
    """Return a value that is kept, which is then the one that was used last."""
    value = kept.get(key)
    if value is not None:
        kept.move_to_end(key)
    return value


def _keep(kept: OrderedDict[Key, Value], key: Key, value: Value, most: int) -> Value:
    """Keep a value, and so many of those that were used last; return it."""
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)
    return value


def _resumption(done: int, at: _Place) -> int:
    """Where a directory goes on, in one number: bytes of it that were read, and the place."""
    return (done << 64 | at.block) << 16 | at.offset


def _resumed(start: int) -> tuple[int, _Place]:
    block, offset = divmod(start, 1 << 16)
    return block >> 64, _Place(block & (1 << 64) - 1, offset)
