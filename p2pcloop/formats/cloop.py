"""Read cloop V2.0: a compressed block device in a file, KNOPPIX's format since 2003.

The layout is that of cloop.h in Debian's package cloop-src; docs/formats/cloop.md has the byte
table, the limits and the reason for each. A file is checked whole when it is opened (header,
index, end), and each block when it is decoded: its zlib stream (RFC 1950) ends where the index
says, with a right checksum, after exactly one block of bytes.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from operator import sub
from pathlib import Path
from typing import Self

from p2pcloop.errors import FormatError, NotHereError, storage_error
from p2pcloop.formats.extents import Extents
from p2pcloop.formats.zlib_stream import decode_block
from p2pcloop.units import MAX_CHUNK_SIZE, MAX_IMAGE_SIZE, SECTOR_SIZE

PREAMBLE_SIZE = 128
HEADER_SIZE = PREAMBLE_SIZE + 8

MAX_BLOCK_SIZE = MAX_CHUNK_SIZE
MAX_BLOCK_COUNT = MAX_IMAGE_SIZE // MAX_BLOCK_SIZE
"""2**24 blocks: an index of 128 MiB in memory. 1 TiB of device at the usual 64 KiB a block."""

_SIZES = struct.Struct(">II")
_OFFSET = struct.Struct(">Q")
_VERSION = re.compile(rb"#!/bin/sh\n#([A-Z][0-9]\.[0-9])")
_UNVERSIONED = re.compile(rb"#!/bin/sh\n[^\0]*cloop")
_PADDING = 512
_AGAIN = "fetch or make it again"


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
        """Bytes of the device, at most 2**44. The padding of the last block is among them."""
        return self.block_size * self.block_count


@dataclass(frozen=True, slots=True)
class CloopIndex:
    """Where each compressed block lies.

    Attributes:
        header: the sizes.
        offsets: block_count + 1 offsets (typecode Q) from the start of the file, increasing.
    """

    header: CloopHeader
    offsets: array[int]

    def extent(self, block: int) -> tuple[int, int]:
        """Return offset and length in bytes of a compressed block."""
        if not 0 <= block < self.header.block_count:
            raise IndexError(f"block {block} of {self.header.block_count}")
        return self.offsets[block], self.offsets[block + 1] - self.offsets[block]


def is_cloop(first_bytes: bytes, last_bytes: bytes = b"") -> bool:
    """Tell whether a file claims to be a cloop, of any version.

    Args:
        first_bytes: the first 128 bytes of the file, or all where it is shorter.
        last_bytes: the last 136 bytes: V4.0 may have its header there.
    """
    unversioned = _UNVERSIONED.match(first_bytes[:PREAMBLE_SIZE])
    return bool(_VERSION.match(first_bytes) or unversioned or _VERSION.match(last_bytes))


def max_compressed_size(block_size: int) -> int:
    """Return the most bytes that a block may take compressed: extract_compressed_fs's own bound.

    The worst of zlib (deflateBound in zlib's deflate.c) is 0.03 % and 13 bytes over the plain size.
    """
    return block_size + block_size // 1000 + 16


def read_cloop_header(read: Callable[[int, int], bytes], file_size: int) -> CloopIndex:
    """Read and check header and index.

    Args:
        read: called with offset and length, returns that many bytes of the file.
        file_size: bytes of the whole file.

    Raises:
        FormatError: it is not a cloop, of another version, cut off or damaged.
    """
    if file_size < HEADER_SIZE + _OFFSET.size:
        raise FormatError(f"a file of {file_size} bytes is too short to be a cloop")
    start = _read_exactly(read, 0, HEADER_SIZE + _OFFSET.size)
    if (version := _VERSION.match(start)) is None or version[1] != b"V2.0":
        last = _read_exactly(read, file_size - HEADER_SIZE, HEADER_SIZE)
        raise _not_v2(start[:PREAMBLE_SIZE], last)
    header = _check_header(start)
    index_size = _OFFSET.size * (header.block_count + 1)
    if _OFFSET.unpack_from(start, HEADER_SIZE)[0] != HEADER_SIZE + index_size:
        raise FormatError("the cloop's first block does not begin where its index ends")
    if file_size <= HEADER_SIZE + index_size:
        raise FormatError(f"the cloop is cut off in its index, after {file_size} bytes")
    offsets = array("Q")
    offsets.frombytes(_read_exactly(read, HEADER_SIZE, index_size))
    if sys.byteorder == "little":
        offsets.byteswap()
    _check_offsets(offsets, max_compressed_size(header.block_size))
    _check_end(read, offsets[-1], file_size)
    return CloopIndex(header, offsets)


def _not_v2(first: bytes, last: bytes) -> FormatError:
    hint = "unpack it with the tools that made it, and seed the raw image"
    if at_start := _VERSION.match(first):
        version = at_start[1].decode()
        return FormatError(f"cloop {version} is not read yet, only V2.0 is", hint=hint)
    if at_end := _VERSION.match(last):
        version = at_end[1].decode()
        return FormatError(
            f"cloop {version} with its header at the end is not read yet, only V2.0 "
            "with its header first is",
            hint=hint,
        )
    if _UNVERSIONED.match(first):
        return FormatError(
            "cloop 0.68 and older (32-bit offsets) is not read yet, only V2.0 is", hint=hint
        )
    return FormatError("not a cloop: it does not start with a shell script that names its version")


def _check_header(start: bytes) -> CloopHeader:
    block_size, block_count = _SIZES.unpack_from(start, PREAMBLE_SIZE)
    if not SECTOR_SIZE <= block_size <= MAX_BLOCK_SIZE or block_size % SECTOR_SIZE:
        raise FormatError(
            f"the cloop's block size is {block_size}, not a multiple of {SECTOR_SIZE} "
            f"up to {MAX_BLOCK_SIZE}"
        )
    if block_count == 0:
        raise FormatError("the cloop holds no blocks: it was made from an empty image")
    if block_count > MAX_BLOCK_COUNT:
        raise FormatError(f"the cloop has {block_count} blocks, more than {MAX_BLOCK_COUNT}")
    return CloopHeader(block_size, block_count)


def _check_offsets(offsets: array[int], limit: int) -> None:
    """Check that every block has between 1 and `limit` bytes."""
    shortest = min(map(sub, islice(offsets, 1, None), offsets))
    longest = max(map(sub, islice(offsets, 1, None), offsets))
    if shortest > 0 and longest <= limit:
        return
    lengths = map(sub, islice(offsets, 1, None), offsets)
    block, length = next((i, n) for i, n in enumerate(lengths) if not 0 < n <= limit)
    raise FormatError(
        f"the cloop's index is damaged: block {block} would take {length} bytes, "
        f"and it can only be 1 to {limit}"
    )


def _check_end(read: Callable[[int, int], bytes], end: int, file_size: int) -> None:
    """Check that the last block ends the file, but for FreeBSD's padding to 512 with zeros."""
    if end > file_size:
        raise FormatError(
            f"the cloop is cut off: it has {file_size} of {end} bytes",
            hint=_AGAIN,
        )
    padding = file_size - end
    if padding == 0:
        return
    if file_size % _PADDING or padding >= _PADDING or any(_read_exactly(read, end, padding)):
        raise FormatError(
            f"{padding} bytes that are no padding follow the cloop's last block",
            hint=f"if they were appended to a sound file, `truncate -s {end}` removes them",
        )


def _read_exactly(read: Callable[[int, int], bytes], offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) != length:
        raise FormatError(f"the file ends inside the {length} bytes at {offset}")
    return data


class CloopFile:
    """An open cloop: random access from any number of threads.

    Attributes:
        path: the file, for messages.
        index: header and offsets, checked.
    """

    def __init__(self, path: Path, fd: int, extents: Extents | None = None) -> None:
        """Take over `fd`; see `open_cloop`."""
        self.path = path
        self._fd = fd
        try:
            self._extents = extents or Extents([(0, os.lseek(fd, 0, os.SEEK_END))])
            self.index = read_cloop_header(self._pread, self._extents.size)
        except FormatError as err:
            raise FormatError(f"{path}: {err}", hint=err.hint or _AGAIN) from err
        except OSError as err:
            raise storage_error(f"cannot read {path}", err) from err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; nothing may be read after."""
        os.close(self._fd)

    def read_block(self, block: int) -> bytes:
        """Return the `index.header.block_size` bytes of a block.

        Raises:
            FormatError: the block is damaged.
            StorageError: the disk refused.
        """
        return self.decode(block, self.read_stored(block))

    def decode(self, block: int, stored: bytes) -> bytes:
        """Return the plain bytes of a block, given what `read_stored` returned.

        Raises:
            FormatError: the block is damaged.
        """
        try:
            return decode_block(stored, self.index.header.block_size)
        except FormatError as err:
            raise self._damaged(block, err) from err

    def read_stored(self, block: int) -> bytes:
        """Return the compressed bytes of a block, as they lie.

        Raises:
            FormatError: the file has become shorter.
            StorageError: the disk refused.
        """
        try:
            return _read_exactly(self._pread, *self.index.extent(block))
        except FormatError as err:
            raise self._damaged(block, err) from err

    def _damaged(self, block: int, err: FormatError) -> FormatError:
        return FormatError(f"{self.path}: block {block}: {err}", hint=_AGAIN)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of the device from `offset` on, all inside the device.

        Raises:
            FormatError: a block is damaged.
            StorageError: the disk refused.
        """
        if offset < 0 or length < 0 or offset + length > self.index.header.size:
            raise ValueError(f"{length} bytes at {offset} are not inside the device")
        if length == 0:
            return b""
        size = self.index.header.block_size
        first, start = divmod(offset, size)
        last = (offset + length - 1) // size
        whole = b"".join(map(self.read_block, range(first, last + 1)))
        return whole[start : start + length]

    def _pread(self, offset: int, length: int) -> bytes:
        """Read `length` bytes, or fewer at the end of the file."""
        try:
            return self._extents.pread(self._fd, length, offset)
        except OSError as err:
            raise storage_error(f"cannot read {self.path}", err) from err


def open_cloop(path: Path, extents: Extents | None = None) -> CloopFile:
    """Open a cloop file or block device for reading and check header and index.

    Args:
        path: of the cloop, or of the file in which it lies.
        extents: where in it, if not from start to end.

    Raises:
        FormatError: see `read_cloop_header`.
        NotHereError: no such file.
        StorageError: the system refused.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as err:
        raise NotHereError(f"{path}: no such file") from err
    except OSError as err:
        raise storage_error(f"cannot read {path}", err) from err
    try:
        return CloopFile(path, fd, extents)
    except BaseException:
        os.close(fd)
        raise
