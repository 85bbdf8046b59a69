"""The files of an ext2, ext3 or ext4 file system, read one structure at a time.

Only what lists directories and finds the bytes of files is read. Content comes from strangers: each
number is checked before it is used, and what is read for one call is bounded. The function that
reads may raise an exception of its own (bytes that are not here yet); nothing is kept of a call
that ended so.

Sources: the kernel's Documentation/filesystems/ext4 (super.rst, group_descr.rst, inodes.rst,
ifork.rst, directory.rst) and fs/ext4/ext4.h.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2pcloop.errors import FormatError
from p2pcloop.formats.file_tree import (
    AGAIN,
    Entry,
    Inode,
    Part,
    Prepare,
    Read,
    Run,
    check_directory,
    check_link,
    content,
    places,
    prepare_nothing,
)
from p2pcloop.words import tr

_PART = 64 << 10
"""Bytes of a directory that are read in one call: the largest block; 5,400 entries at most."""

_PREPARED = 1 << 20
"""Bytes of a directory that are prepared together. A call walks their map: 1024 runs at most."""

_SUPERBLOCK = 1024
_MAGIC = 0xEF53
_FIRST_INODE_SIZE = 128

_FILE_TYPES = 0x2
_RECOVER = 0x4
_EXTENTS = 0x40
_64BIT = 0x80
_MULTIPLE_MOUNT = 0x100
_FLEX_GROUPS = 0x200
_ATTRIBUTE_INODES = 0x400
_CHECKSUM_SEED = 0x2000
_LARGE_DIRECTORIES = 0x4000
_READABLE = (
    *(_FILE_TYPES, _EXTENTS, _64BIT, _MULTIPLE_MOUNT, _FLEX_GROUPS),
    *(_ATTRIBUTE_INODES, _CHECKSUM_SEED, _LARGE_DIRECTORIES),
)
_NAMES = {
    0x1: "compression",
    0x10: "meta_bg",
    0x1000: "dirdata",
    0x8000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
}

_HAS_EXTENTS = 0x80000
_EXTENT_MAGIC = 0xF30A
_EXTENT_HEADER = struct.Struct("<HHHHI")
_EXTENT = struct.Struct("<IHHI")
_EXTENT_INDEX = struct.Struct("<IIHH")
_MAX_DEPTH = 5
_NOT_WRITTEN = 1 << 15
"""An extent of more blocks than this was allocated and never written."""

_DIRECT = 12
_DIRECTORY_ENTRY = struct.Struct("<IHBB")
_KINDS = (
    *(0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR),
    *(stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK),
)
"""Kinds of files by the number in a directory entry (directory.rst)."""

_FAST_LINK = 60


@dataclass(frozen=True, slots=True)
class Ext4Inode(Inode):
    """An inode of ext4.

    Attributes:
        links: how many names it has.
        flags: of ext4.
        place: the 60 bytes that say where its content lies, or are the target of a short link.
    """

    links: int = 1
    flags: int = 0
    place: bytes = b""


class Ext4:
    """A file system; see `FileTree`."""

    root = 2

    def __init__(self, read: Read, size: int, prepare: Prepare = prepare_nothing) -> None:
        """Read the superblock.

        Args:
            read: reads the device.
            size: bytes of the device.
            prepare: see `Prepare`.

        Raises:
            FormatError: it is none, is damaged, or has abilities that are not read.
        """
        self._read = read
        self._prepare = prepare
        self._size = size
        data = read(_SUPERBLOCK, 1024)
        if len(data) < 1024 or struct.unpack_from("<H", data, 56)[0] != _MAGIC:
            raise FormatError("it has no superblock of ext4", hint=AGAIN)
        (abilities,) = struct.unpack_from("<I", data, 96)
        _check_abilities(abilities)
        self._kinds = _KINDS if abilities & _FILE_TYPES else ()
        (shift,) = struct.unpack_from("<I", data, 24)
        (self._inodes,) = struct.unpack_from("<I", data, 0)
        (self._inodes_per_group,) = struct.unpack_from("<I", data, 40)
        (first_block,) = struct.unpack_from("<I", data, 20)
        (revision,) = struct.unpack_from("<I", data, 76)
        self._inode_size = struct.unpack_from("<H", data, 88)[0] if revision else _FIRST_INODE_SIZE
        wide = abilities & _64BIT
        self._descriptor_size = struct.unpack_from("<H", data, 254)[0] if wide else 32
        self._wide = bool(wide)
        if (
            shift > 6
            or not self._inodes_per_group
            or not 128 <= self._inode_size <= 1024 << shift
            or not (64 if wide else 32) <= self._descriptor_size <= 1024
        ):
            raise FormatError("the superblock of its ext4 has impossible values", hint=AGAIN)
        self._block = 1024 << shift
        self._descriptors = (first_block + 1) * self._block

    def inode(self, number: int) -> Ext4Inode:
        """Read an inode.

        Raises:
            FormatError: there is none of this number.
        """
        if not 1 <= number <= self._inodes:
            raise FormatError(tr("there is no inode {number}", number=number), hint=AGAIN)
        group, index = divmod(number - 1, self._inodes_per_group)
        at = self._descriptors + group * self._descriptor_size
        descriptor = self._take(at, self._descriptor_size)
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if self._wide:
            table |= struct.unpack_from("<I", descriptor, 40)[0] << 32
        data = self._take(table * self._block + index * self._inode_size, self._inode_size)
        mode, _, low = struct.unpack_from("<HHI", data)
        (changed,) = struct.unpack_from("<i", data, 16)
        (links,) = struct.unpack_from("<H", data, 26)
        (flags,) = struct.unpack_from("<I", data, 32)
        (high,) = struct.unpack_from("<I", data, 108)
        if len(data) >= 140 and struct.unpack_from("<H", data, 128)[0] >= 12:
            changed += (struct.unpack_from("<I", data, 136)[0] & 3) << 32
        size = low | high << 32
        return Ext4Inode(number, mode, size, changed, links, flags, data[40:100])

    def entries(self, folder: Ext4Inode, start: int = 0) -> Part:
        """See `FileTree.entries`; parts begin at bytes of the directory.

        Raises:
            FormatError: it is no directory, too large, or damaged.
        """
        check_directory(folder)
        if start % _PREPARED == 0:
            runs = self.runs(folder, start, _PREPARED)
            self._prepare(places(runs))
        data = content(self.runs(folder, start, _PART), self._take, self._prepare)
        found: list[Entry] = []
        for at in range(0, len(data), self._block):
            found += _entries(data[at : at + self._block], self._kinds)
        end = start + _PART
        return found, end if end < folder.size else None

    def target(self, link: Ext4Inode) -> bytes:
        """The target of a symbolic link.

        Raises:
            FormatError: it is no link, or its target is too long.
        """
        check_link(link)
        if link.size < _FAST_LINK and not link.flags & _HAS_EXTENTS:
            return link.place[: link.size]
        return content(self.runs(link, 0, link.size), self._take, self._prepare)

    def runs(self, file: Ext4Inode, offset: int, length: int) -> Iterator[Run]:
        """Where bytes of a file lie in the device, in order, up to the file's end.

        Raises:
            FormatError: its map is damaged.
        """
        end = min(offset + length, file.size)
        while offset < end:
            block, within = divmod(offset, self._block)
            place, blocks = self._find(file, block, -(-end // self._block) - block)
            size = min(blocks * self._block - within, end - offset)
            at = None if place is None else place * self._block + within
            if at is not None and at + size > self._size:
                raise FormatError("a file lies beyond the end of the device", hint=AGAIN)
            yield size, at
            offset += size

    def _find(self, file: Ext4Inode, block: int, most: int) -> tuple[int | None, int]:
        """The place of a file's block, and how many blocks, up to `most`, follow it there."""
        if file.flags & _HAS_EXTENTS:
            return self._find_extent(file, block, most)
        pointers = self._pointers(file, block, most)
        first = pointers[0]
        count = 1
        while count < len(pointers) and pointers[count] == (first + count if first else 0):
            count += 1
        return first or None, count

    def _find_extent(self, file: Ext4Inode, block: int, most: int) -> tuple[int | None, int]:
        node = file.place
        end = block + most
        for depth in range(_MAX_DEPTH, -1, -1):
            magic, count, _, levels, _ = _EXTENT_HEADER.unpack_from(node)
            if magic != _EXTENT_MAGIC or levels > depth or count * 12 + 12 > len(node):
                raise FormatError(
                    tr("the extents of inode {number} are damaged", number=file.number), hint=AGAIN
                )
            items = memoryview(node)[12 : 12 + count * 12]
            if not levels:
                return _find_in_leaf(items, block, end)
            child = None
            for first, low, high, _ in _EXTENT_INDEX.iter_unpack(items):
                if first > block:
                    end = min(end, first)
                    break
                child = high << 32 | low
            if child is None:
                return None, end - block
            node = self._take(child * self._block, self._block)
        raise FormatError(
            tr("the extents of inode {number} are too deep", number=file.number), hint=AGAIN
        )

    def _pointers(self, file: Ext4Inode, block: int, most: int) -> Sequence[int]:
        """Places of a block and of some that follow, at least one, by the map of ext2 and ext3; 0
        for zeros."""
        if block < _DIRECT:
            return tuple(
                struct.unpack_from(f"<{min(most, _DIRECT - block)}I", file.place, 4 * block)
            )
        block -= _DIRECT
        each = self._block // 4
        for level in (1, 2, 3):
            if block < each**level:
                break
            block -= each**level
        else:
            raise FormatError(
                tr("inode {number} is too long for its map", number=file.number), hint=AGAIN
            )
        (place,) = struct.unpack_from("<I", file.place, 4 * (_DIRECT + level - 1))
        while place and level > 1:
            level -= 1
            index, block = divmod(block, each**level)
            (place,) = struct.unpack("<I", self._take(place * self._block + 4 * index, 4))
        index = block % each
        count = min(most, each - index)
        if not place:
            return [0] * count
        pointers: Sequence[int] = struct.unpack(
            f"<{count}I", self._take(place * self._block + 4 * index, 4 * count)
        )
        return pointers

    def _take(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            raise FormatError("its ext4 names places beyond the device's end", hint=AGAIN)
        return self._read(offset, length)


def _check_abilities(incompatible: int) -> None:
    if incompatible & _RECOVER:
        raise FormatError(
            "its journal holds changes that only a mount writes into their places",
            hint="boot it once and shut it down, or mount disk.img",
        )
    other = incompatible & ~sum(_READABLE)
    if other:
        names = [_NAMES.get(1 << bit, hex(1 << bit)) for bit in range(32) if other >> bit & 1]
        raise FormatError(
            tr("its ext4 uses {names}, which is not read here", names=", ".join(names)),
            hint="mount disk.img",
        )


def _entries(block: bytes, kinds: Sequence[int]) -> Iterator[Entry]:
    at = 0
    while at + _DIRECTORY_ENTRY.size <= len(block):
        number, length, name_length, kind = _DIRECTORY_ENTRY.unpack_from(block, at)
        size = len(block) if length in (0, 0xFFFF) and len(block) == 1 << 16 else length
        if size < _DIRECTORY_ENTRY.size or size % 4 or at + size > len(block):
            raise FormatError("a directory is damaged", hint=AGAIN)
        name = block[at + _DIRECTORY_ENTRY.size :][:name_length]
        # Parts of its index, and checksums, are entries without an inode.
        if number and name not in (b".", b".."):
            if not name or name_length > size - _DIRECTORY_ENTRY.size or {0, 0x2F} & set(name):
                raise FormatError("a directory has an impossible name", hint=AGAIN)
            yield Entry(name, number, kinds[kind] if kind < len(kinds) else 0)
        at += size


def _find_in_leaf(items: memoryview, block: int, end: int) -> tuple[int | None, int]:
    for first, length, high, low in _EXTENT.iter_unpack(items):
        written = length <= _NOT_WRITTEN
        count = length if written else length - _NOT_WRITTEN
        if first > block:
            return None, min(first, end) - block
        if block < first + count:
            place = (high << 32 | low) + block - first
            return place if written else None, min(first + count, end) - block
    return None, end - block
