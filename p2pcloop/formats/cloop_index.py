"""Header and index of a cloop of any version that KNOPPIX had: places and codecs of all blocks.

Both are checked whole. The layouts are those of `cloop.h` and `cloop.c` of Debian's package
cloop-src (V2.0, V4.0), and of the programs that made the older ones; docs/formats/cloop.md has the
byte tables, the limits and the reasons.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Callable

from p2pcloop.errors import FormatError
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop_entries import (
    AGAIN,
    COMPRESSORS,
    FLAGS_SHIFT,
    OFFSET_MASK,
    flagged_lengths,
    zlib_lengths,
)
from p2pcloop.frozen import dataclass
from p2pcloop.units import MAX_CHUNK_SIZE, MAX_IMAGE_SIZE, SECTOR_SIZE
from p2pcloop.words import tr

PREAMBLE_SIZE = 128
HEADER_SIZE = PREAMBLE_SIZE + 8

MAX_BLOCK_SIZE = MAX_CHUNK_SIZE
MAX_BLOCK_COUNT = MAX_IMAGE_SIZE // MAX_BLOCK_SIZE
"""2**24 blocks: an index of 128 MiB in memory. 1 TiB of device at the usual 64 KiB a block."""

Read = Callable[[int, int], bytes]
"""Returns the bytes of the file at an offset, of a length; fewer if it has become shorter."""

_SIZES = struct.Struct(">II")
_VERSION = re.compile(rb"#!/bin/sh\n#([A-Z][0-9]\.[0-9])")
_UNVERSIONED = re.compile(rb"#!/bin/sh\n[^\0]*cloop")
_PADDING = 512


@dataclass(frozen=True, slots=True)
class _Version:
    """The form of a version's index: its integers and their limits."""

    name: str
    typecode: str
    byte_order: str
    may_be_last: bool = False
    has_flags: bool = False

    @property
    def entry_size(self) -> int:
        return array(self.typecode).itemsize


_OLDEST = _Version("V0.68", "I", "big")
_VERSIONS = {
    b"V1.0": _Version("V1.0", "Q", "little"),
    b"V2.0": _Version("V2.0", "Q", "big", may_be_last=True),
    b"V4.0": _Version("V4.0", "Q", "big", may_be_last=True, has_flags=True),
}


@dataclass(frozen=True, slots=True)
class CloopHeader:
    """Attributes:
    block_size: bytes of the device in one block; a multiple of 512, at most 1 MiB.
    block_count: at least 1, at most 2**24.
    """

    block_size: int
    block_count: int

    @property
    def size(self) -> int:
        """Bytes of the device, at most 2**44, with the padding of the last block."""
        return self.block_size * self.block_count


@dataclass(frozen=True, slots=True)
class CloopIndex:
    """The place of each compressed block.

    Attributes:
        header: the sizes.
        version: "V0.68", "V1.0", "V2.0" or "V4.0".
        header_last: whether header and index are behind the blocks.
        entries: for each block its offset (typecode Q) from the start of the file; in V4.0 with its
            compressor in the upper 4 bits.
        lengths: for each block its compressed bytes (typecode I).
        has_repeats: whether equal blocks share a place.
    """

    header: CloopHeader
    version: str
    header_last: bool
    entries: array[int]
    lengths: array[int]
    has_repeats: bool

    def extent(self, block: int) -> tuple[int, int]:
        """Return offset and length in bytes of a compressed block."""
        self._check(block)
        return self.entries[block] & OFFSET_MASK, self.lengths[block]

    def codec(self, block: int) -> Codec:
        """Return the codec of a block."""
        self._check(block)
        return COMPRESSORS[self.entries[block] >> FLAGS_SHIFT]

    def codecs(self) -> dict[Codec, int]:
        """Return the number of blocks of each codec."""
        counts = Counter(map(FLAGS_SHIFT.__rrshift__, self.entries))
        return {COMPRESSORS[flags]: count for flags, count in sorted(counts.items())}

    def _check(self, block: int) -> None:
        if not 0 <= block < self.header.block_count:
            raise IndexError(f"block {block} of {self.header.block_count}")


def is_cloop(first_bytes: bytes, last_bytes: bytes = b"") -> bool:
    """Tell whether a file claims to be a cloop, of any version.

    Args:
        first_bytes: the first 128 bytes of the file, or all if it is shorter.
        last_bytes: the last 136 bytes: V2.0 and V4.0 may have their header there.
    """
    unversioned = _UNVERSIONED.match(first_bytes[:PREAMBLE_SIZE])
    return bool(_VERSION.match(first_bytes) or unversioned or _VERSION.match(last_bytes))


def read_cloop_header(read: Read, file_size: int) -> CloopIndex:
    """Read and check header and index.

    Args:
        read: called with offset and length, returns that many bytes of the file.
        file_size: bytes of the whole file.

    Raises:
        FormatError: it is not a cloop, of another version, cut off or damaged.
    """
    if file_size < HEADER_SIZE + 8:
        raise FormatError(
            tr("a file of {file_size} bytes is too short to be a cloop", file_size=file_size)
        )
    first = read_exactly(read, 0, HEADER_SIZE)
    last = read_exactly(read, file_size - HEADER_SIZE, HEADER_SIZE)
    version, head, header_last = _find_header(first, last)
    header = _check_header(head)
    read_entries = _read_last if header_last else _read_first
    entries = read_entries(read, file_size, version, header.block_count)
    end = entries[-1] & _mask(version)
    index = _check_entries(header, version, entries, header_last=header_last)
    if not header_last:
        _check_end(read, end, file_size)
    return index


def _find_header(first: bytes, last: bytes) -> tuple[_Version, bytes, bool]:
    """Return the version, its header, and whether it is last, as the kernel module decides it."""
    at_start, at_end = _VERSION.match(first), _VERSION.match(last)
    if at_start and (version := _VERSIONS.get(at_start[1])):
        return version, first, False
    if at_end and (version := _VERSIONS.get(at_end[1])) and version.may_be_last:
        return version, last, True
    if named := at_start or at_end:
        where = "" if at_start else tr(" with its header at the end")
        raise FormatError(
            tr(
                "cloop {named}{where} is not read, only V0.68, V1.0, V2.0 and V4.0 are",
                named=named[1].decode(),
                where=where,
            ),
            hint="unpack it with the tools that made it, and seed the raw image",
        )
    if _UNVERSIONED.match(first):
        return _OLDEST, first, False
    raise FormatError("not a cloop: it has no shell script that names its version, first or last")


def _check_header(head: bytes) -> CloopHeader:
    block_size, block_count = _SIZES.unpack_from(head, PREAMBLE_SIZE)
    if not SECTOR_SIZE <= block_size <= MAX_BLOCK_SIZE or block_size % SECTOR_SIZE:
        raise FormatError(
            tr(
                "the cloop's block size is {block_size}, not a multiple of {sector_size} up to"
                " {max_block_size}",
                block_size=block_size,
                sector_size=SECTOR_SIZE,
                max_block_size=MAX_BLOCK_SIZE,
            )
        )
    if block_count == 0:
        raise FormatError("the cloop holds no blocks: it was made from an empty image")
    if block_count > MAX_BLOCK_COUNT:
        raise FormatError(
            tr(
                "the cloop has {block_count} blocks, more than {max_block_count}",
                block_count=block_count,
                max_block_count=MAX_BLOCK_COUNT,
            )
        )
    return CloopHeader(block_size, block_count)


def _read_first(read: Read, file_size: int, version: _Version, count: int) -> array[int]:
    """Read the index behind a header at the start; the blocks follow, to the end of the file."""
    start = HEADER_SIZE + version.entry_size * (count + 1)
    (offset,) = _to_array(version, read_exactly(read, HEADER_SIZE, version.entry_size))
    if offset & _mask(version) != start:
        raise FormatError("the cloop's first block does not begin where its index ends")
    if file_size <= start:
        raise FormatError(
            tr("the cloop is cut off in its index, after {file_size} bytes", file_size=file_size)
        )
    return _to_array(version, read_exactly(read, HEADER_SIZE, start - HEADER_SIZE))


def _read_last(read: Read, file_size: int, version: _Version, count: int) -> array[int]:
    """Read the index before a header at the end; the blocks are before the index."""
    size = version.entry_size * (count + 1)
    start = file_size - HEADER_SIZE - size
    if start <= 0:
        raise FormatError(
            tr("the cloop is cut off: {file_size} bytes do not hold its index", file_size=file_size)
        )
    entries = _to_array(version, read_exactly(read, start, size))
    if entries[-1] & _mask(version) != start:
        raise FormatError("the cloop's last block does not end where its index begins", hint=AGAIN)
    return entries


def _mask(version: _Version) -> int:
    return OFFSET_MASK if version.has_flags else (1 << 64) - 1


def _to_array(version: _Version, data: bytes) -> array[int]:
    entries = array(version.typecode)
    entries.frombytes(data)
    if sys.byteorder != version.byte_order:
        entries.byteswap()
    return entries if version.typecode == "Q" else array("Q", entries)


def _check_end(read: Read, end: int, file_size: int) -> None:
    """Check that the last block ends the file, but for FreeBSD's padding to 512 with zeros."""
    if end > file_size:
        raise FormatError(
            tr(
                "the cloop is cut off: it has {file_size} of {end} bytes",
                file_size=file_size,
                end=end,
            ),
            hint=AGAIN,
        )
    padding = file_size - end
    if padding == 0:
        return
    if file_size % _PADDING or padding >= _PADDING or any(read_exactly(read, end, padding)):
        raise FormatError(
            tr(
                "{padding} bytes that are no padding follow the cloop's last block", padding=padding
            ),
            hint=tr(
                "if they were appended to a sound file, `truncate -s {end}` removes them", end=end
            ),
        )


def _check_entries(
    header: CloopHeader, version: _Version, entries: array[int], *, header_last: bool
) -> CloopIndex:
    """Check all entries except the last one, which is the end of the last block."""
    lengths, has_repeats = (
        flagged_lengths(entries, header.block_size)
        if version.has_flags
        else (zlib_lengths(entries, header.block_size), False)
    )
    entries.pop()
    return CloopIndex(header, version.name, header_last, entries, lengths, has_repeats)


def read_exactly(read: Read, offset: int, length: int) -> bytes:
    """Return `length` bytes of the file.

    Raises:
        FormatError: there are fewer.
    """
    data = read(offset, length)
    if len(data) != length:
        raise FormatError(
            tr("the file ends inside the {length} bytes at {offset}", length=length, offset=offset)
        )
    return data
