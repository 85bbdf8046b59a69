"""Write cloops of two versions.

A V2.0 is byte for byte the file that create_compressed_fs writes at the same level of zlib. A V4.0
is one that the kernel module of Debian's package cloop-src reads.

Every block is stored, also one that is equal to another. cloop_entries.py reads files in which
equal blocks have equal offsets. This module does not write such files: the kernel module takes the
offset of the next entry for the end of a block.
"""

from __future__ import annotations

import shutil
import struct
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from p2pcloop.errors import FormatError, UsageError, storage_error
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop_compress import (
    CODECS,
    Compress,
    smallest_compressor,
    zlib_compressor,
)
from p2pcloop.formats.cloop_entries import COMPRESSORS, FLAGS_SHIFT
from p2pcloop.formats.cloop_index import (
    HEADER_SIZE,
    MAX_BLOCK_COUNT,
    MAX_BLOCK_SIZE,
    PREAMBLE_SIZE,
    CloopHeader,
)
from p2pcloop.parallel import ordered_map
from p2pcloop.units import SECTOR_SIZE, format_size

VERSIONS = (2, 4)

# qemu recognises V2.0 by these very lines (cloop_probe in its block/cloop.c).
_PREAMBLE = (
    b"#!/bin/sh\n"
    b"#V%d.0 Format\n"
    b"modprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    b"exit $?\n"
)

_AHEAD_SIZE = 4 << 20
"""Bytes of blocks per worker that are compressed or wait to be. Blocks take very different times:
zeros none, others up to ten times as long as the next."""

_STREAM_START = b"cloop V4.0, its header is at its end\n"
"""A file with its header last begins with this: the kernel module takes no block at offset 0."""


@dataclass(frozen=True, slots=True)
class CloopForm:
    """Which cloop is written.

    Attributes:
        version: 2 or 4.
        codec: zlib; in V4.0 also xz, LZ4 or LZO.
        block_size: bytes; a multiple of 512, at most 1 MiB.
        level: of zlib, 0 (stored) to 9 (smallest).
    """

    version: int = 2
    codec: Codec = Codec.ZLIB
    block_size: int = 65536
    level: int = 9

    def compressor(self) -> Compress:
        """The function that compresses its blocks.

        Raises:
            UsageError: a version, codec or level that the format or zlib does not have.
            NeedsPackageError: LZO without its library.
        """
        if self.version not in VERSIONS:
            raise UsageError(f"cloop V{self.version}.0 is not written, only V2.0 and V4.0 are")
        if self.codec not in (CODECS if self.version > VERSIONS[0] else CODECS[:1]):
            raise UsageError(
                f"cloop V{self.version}.0 has no {self.codec.name.lower()}",
                hint="take V4.0, with zlib, xz, lz4 or lzo",
            )
        if not 0 <= self.level <= zlib.Z_BEST_COMPRESSION:
            raise UsageError(f"a compression level of {self.level} is not from 0 to 9")
        if self.version == VERSIONS[0]:
            return zlib_compressor(self.level)
        return smallest_compressor(self.codec, self.level)

    def header(self, size: int) -> CloopHeader:
        """The header of a cloop of `size` bytes.

        Raises:
            UsageError: a block size that the format does not have.
            FormatError: the image is empty or too large.
        """
        block_size = self.block_size
        if not SECTOR_SIZE <= block_size <= MAX_BLOCK_SIZE or block_size % SECTOR_SIZE:
            raise UsageError(f"a block size of {block_size} is not a multiple of 512 up to 1 MiB")
        if size <= 0:
            raise FormatError("the image is empty: there is nothing to compress")
        header = CloopHeader(block_size, -(-size // block_size))
        if header.block_count > MAX_BLOCK_COUNT:
            limit = format_size(MAX_BLOCK_COUNT * block_size)
            raise FormatError(
                f"an image of {format_size(size)} is over the limit of {limit} "
                f"for blocks of {block_size} bytes",
                hint="take a larger block size, up to 1 MiB",
            )
        return header


_DEFAULT = CloopForm()


def write_cloop(
    source: BinaryIO,
    size: int,
    dest: BinaryIO,
    form: CloopForm = _DEFAULT,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> CloopHeader:
    """Compress a raw image into a cloop with its header first.

    The header is written last, so that an error or a crash leaves a file that is no cloop. At most
    4 MiB of blocks per worker are in memory, or three blocks.

    Args:
        source: the raw image, read from its current position; may be a pipe.
        size: bytes of the image, at least 1. Zeros fill the last block up.
        dest: empty or to be overwritten from its start; seekable. Neither flushed nor synced.
        form: which cloop.
        workers: threads that compress. [default: as many as this process may use CPUs]
        progress: called with the bytes of the image done so far, after each block.

    Raises:
        UsageError: a version, codec, block size or level that the format or zlib does not have.
        FormatError: the image is empty, too large, or shorter than `size`.
        NeedsPackageError: LZO without its library.
        StorageError: reading or writing failed.
    """
    compress, header = form.compressor(), form.header(size)
    start = HEADER_SIZE + 8 * (header.block_count + 1)
    with _storage_errors("cannot write the cloop"):
        dest.seek(0)
        dest.truncate()
        dest.seek(start)
    blocks = _compressed(_read_blocks(source, size, form.block_size), form, compress, workers)
    with closing(blocks):
        index = _write_blocks(blocks, dest, start, _report(progress, size, form))
    with _storage_errors("cannot write the cloop"):
        dest.seek(0)
        dest.write(_pack_header(form, header) + index)
    return header


def stream_cloop(
    source: BinaryIO,
    size: int,
    dest: BinaryIO,
    form: CloopForm = _DEFAULT,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> CloopHeader:
    """Compress a raw image into a cloop that is written from its start to its end, as to a pipe.

    A V4.0 has its header last and takes no room. The index of a V2.0 comes first, and is known only
    when all is compressed: until then the blocks are in a temporary file (in TMPDIR).

    Args and raises: as for `write_cloop`; and
        dest: need not be seekable.
    """
    if form.version == VERSIONS[0]:
        with _storage_errors("cannot write a temporary file"), tempfile.TemporaryFile() as spool:
            header = write_cloop(source, size, spool, form, workers=workers, progress=progress)
            spool.seek(0)
            with _storage_errors("cannot write the cloop"):
                shutil.copyfileobj(spool, dest, 1 << 20)
        return header
    compress, header = form.compressor(), form.header(size)
    with _storage_errors("cannot write the cloop"):
        dest.write(_STREAM_START)
    start = len(_STREAM_START)
    blocks = _compressed(_read_blocks(source, size, form.block_size), form, compress, workers)
    with closing(blocks):
        index = _write_blocks(blocks, dest, start, _report(progress, size, form))
    with _storage_errors("cannot write the cloop"):
        dest.write(index + _pack_header(form, header))
    return header


def _read_blocks(source: BinaryIO, size: int, block_size: int) -> Iterator[bytes]:
    """Yield the image block by block, the last one filled up with zeros."""
    for offset in range(0, size, block_size):
        wanted = min(block_size, size - offset)
        block = b""
        while len(block) < wanted:
            with _storage_errors("cannot read the image"):
                part = source.read(wanted - len(block))
            if not part:
                raise FormatError(f"the image ends after {offset + len(block)} of {size} bytes")
            block += part
        yield block.ljust(block_size, b"\0")


_Compressed = Generator[tuple[Codec, bytes]]


def _compressed(
    blocks: Iterator[bytes], form: CloopForm, compress: Compress, workers: int | None
) -> _Compressed:
    """Yield each block compressed, in order; blocks of zeros are compressed once."""
    zeros = bytes(form.block_size)
    compressed_zeros = compress(zeros)
    return ordered_map(
        lambda block: compressed_zeros if block == zeros else compress(block),
        blocks,
        workers=workers,
        ahead=max(3, _AHEAD_SIZE // form.block_size),
    )


def _write_blocks(
    blocks: _Compressed, dest: BinaryIO, start: int, done: Callable[[int], None]
) -> bytes:
    """Write blocks end to end from `start` on and return the index of them.

    `done` is told how many are written.
    """
    flags = {codec: number << FLAGS_SHIFT for number, codec in enumerate(COMPRESSORS)}
    entries = array("Q")
    for codec, stored in blocks:
        with _storage_errors("cannot write the cloop"):
            dest.write(stored)
        entries.append(flags[codec] | start)
        start += len(stored)
        done(len(entries))
    entries.append(start)
    if sys.byteorder == "little":
        entries.byteswap()
    return entries.tobytes()


def _pack_header(form: CloopForm, header: CloopHeader) -> bytes:
    sizes = struct.pack(">II", header.block_size, header.block_count)
    return (_PREAMBLE % form.version).ljust(PREAMBLE_SIZE, b"\0") + sizes


def _report(
    progress: Callable[[int], None] | None, size: int, form: CloopForm
) -> Callable[[int], None]:
    """A function that reports written blocks to `progress`, as bytes of the image."""

    def tell(blocks: int) -> None:
        if progress is not None:
            progress(min(size, blocks * form.block_size))

    return tell


@contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise storage_error(what, err) from err
