"""Write cloops of two versions.

A V2.0 is byte for byte the file that create_compressed_fs writes at the same level of zlib, but for
blocks that the caller has in compressed form already. A V4.0 is one that the kernel module of
Debian's package cloop-src reads.

Every block is stored, also one that is equal to another. cloop_entries.py reads files in which
equal blocks have equal offsets. This module does not write such files: the kernel module takes the
offset of the next entry for the end of a block.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
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
from p2pcloop.frozen import dataclass
from p2pcloop.parallel import ordered_map
from p2pcloop.units import SECTOR_SIZE, format_size
from p2pcloop.words import tr

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

    def for_size(self, size: int) -> CloopForm:
        """This form, with blocks as large as an image of `size` bytes needs."""
        block_size = self.block_size
        while size > MAX_BLOCK_COUNT * block_size and block_size < MAX_BLOCK_SIZE:
            block_size *= 2
        return replace(self, block_size=min(block_size, MAX_BLOCK_SIZE))

    def compressor(self) -> Compress:
        """The function that compresses its blocks.

        Raises:
            UsageError: a version, codec or level that the format or zlib does not have.
            NeedsPackageError: LZO without its library.
        """
        if self.version not in VERSIONS:
            raise UsageError(
                tr(
                    "cloop V{version}.0 is not written, only V2.0 and V4.0 are",
                    version=self.version,
                )
            )
        if self.codec not in (CODECS if self.version > VERSIONS[0] else CODECS[:1]):
            raise UsageError(
                tr(
                    "cloop V{version}.0 has no {lower}",
                    version=self.version,
                    lower=self.codec.name.lower(),
                ),
                hint="take V4.0, with zlib, xz, lz4 or lzo",
            )
        if not 0 <= self.level <= zlib.Z_BEST_COMPRESSION:
            raise UsageError(
                tr("a compression level of {level} is not from 0 to 9", level=self.level)
            )
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
            raise UsageError(
                tr(
                    "a block size of {block_size} is not a multiple of 512 up to 1 MiB",
                    block_size=block_size,
                )
            )
        if size <= 0:
            raise FormatError("the image is empty: there is nothing to compress")
        header = CloopHeader(block_size, -(-size // block_size))
        if header.block_count > MAX_BLOCK_COUNT:
            limit = format_size(MAX_BLOCK_COUNT * block_size)
            raise FormatError(
                tr(
                    "an image of {size} is over the limit of {limit} for blocks of {block_size}"
                    " bytes",
                    size=format_size(size),
                    limit=limit,
                    block_size=block_size,
                ),
                hint="take a larger block size, up to 1 MiB",
            )
        return header


_DEFAULT = CloopForm()

StoredBlock = Callable[[], bytes | None]
"""Returns a block as it is compressed already; None if its bytes are wrong. Runs on any thread."""

FindStored = Callable[[int, CloopForm], StoredBlock | None]
"""Finds the block at an offset of the image, compressed as this form has it; None if there is none.
Called on one thread."""


def nothing_stored(_offset: int, _form: CloopForm) -> None:
    """The `FindStored` of an image of which nothing is compressed."""


def write_cloop(
    source: BinaryIO,
    size: int,
    dest: BinaryIO,
    form: CloopForm = _DEFAULT,
    *,
    find: FindStored = nothing_stored,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> CloopHeader:
    """Compress a raw image into a cloop with its header first.

    The header is written last, so that an error or a crash leaves a file that is no cloop. At most
    4 MiB of blocks per worker are in memory, or three blocks.

    Args:
        source: the raw image, read from its current position; may be a pipe if nothing is found
            stored, else it is seekable and the position is 0.
        size: bytes of the image, at least 1. Zeros fill the last block up.
        dest: empty or to be overwritten from its start; seekable. Neither flushed nor synced.
        form: which cloop.
        find: finds blocks that need not be compressed again.
        workers: threads that compress. [default: as many as this process may use CPUs]
        progress: called with the bytes of the image done so far, after each block.

    Raises:
        UsageError: a version, codec, block size or level that the format or zlib does not have.
        FormatError: the image is empty, too large, or shorter than `size`.
        NeedsPackageError: LZO without its library.
        StorageError: reading or writing failed.
    """
    image, header = _Image(source, size, form, find), form.header(size)
    start = HEADER_SIZE + 8 * (header.block_count + 1)
    with _storage_errors(tr("cannot write the cloop")):
        dest.seek(0)
        dest.truncate()
        dest.seek(start)
    with closing(image.compressed(workers)) as blocks:
        index = _write_blocks(blocks, dest, start, _report(progress, size, form))
    with _storage_errors(tr("cannot write the cloop")):
        dest.seek(0)
        dest.write(_pack_header(form, header) + index)
    return header


def stream_cloop(
    source: BinaryIO,
    size: int,
    dest: BinaryIO,
    form: CloopForm = _DEFAULT,
    *,
    find: FindStored = nothing_stored,
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
        with (
            _storage_errors(tr("cannot write a temporary file")),
            tempfile.TemporaryFile() as spool,
        ):
            header = write_cloop(
                source, size, spool, form, find=find, workers=workers, progress=progress
            )
            spool.seek(0)
            with _storage_errors(tr("cannot write the cloop")):
                shutil.copyfileobj(spool, dest, 1 << 20)
        return header
    image, header = _Image(source, size, form, find), form.header(size)
    with _storage_errors(tr("cannot write the cloop")):
        dest.write(_STREAM_START)
    start = len(_STREAM_START)
    with closing(image.compressed(workers)) as blocks:
        index = _write_blocks(blocks, dest, start, _report(progress, size, form))
    with _storage_errors(tr("cannot write the cloop")):
        dest.write(index + _pack_header(form, header))
    return header


_Compressed = Generator[tuple[Codec, bytes]]


class _Image:
    """An image that is compressed block by block; the last block is filled up with zeros."""

    def __init__(self, source: BinaryIO, size: int, form: CloopForm, find: FindStored) -> None:
        self._source = source
        self._size = size
        self._form = form
        self._find = find
        self._compress = form.compressor()

    def compressed(self, workers: int | None) -> _Compressed:
        """Yield each block compressed, in order; blocks of zeros are compressed once."""
        zeros = bytes(self._form.block_size)
        compressed_zeros = self._compress(zeros)

        def work(block: bytes | StoredBlock) -> tuple[Codec, bytes] | None:
            if not isinstance(block, bytes):
                stored = block()
                return None if stored is None else (self._form.codec, stored)
            return compressed_zeros if block == zeros else self._compress(block)

        ahead = max(3, _AHEAD_SIZE // self._form.block_size)
        done = ordered_map(work, self._blocks(), workers=workers, ahead=ahead)
        with closing(done):
            for number, block in enumerate(done):
                yield block or self._compress(self._read_again(number * self._form.block_size))

    def _blocks(self) -> Iterator[bytes | StoredBlock]:
        """Yield the image block by block, each as it is found stored, else its content."""
        size = self._form.block_size
        for offset in range(0, self._size, size):
            stored = self._find(offset, self._form) if offset + size <= self._size else None
            if stored is None:
                yield self._read(offset)
            else:
                self._source.seek(size, os.SEEK_CUR)
                yield stored

    def _read_again(self, offset: int) -> bytes:
        """Read a block whose stored bytes are wrong, and go back to where the source was."""
        place = self._source.tell()
        self._source.seek(offset)
        block = self._read(offset)
        self._source.seek(place)
        return block

    def _read(self, offset: int) -> bytes:
        wanted = min(self._form.block_size, self._size - offset)
        block = b""
        while len(block) < wanted:
            with _storage_errors(tr("cannot read the image")):
                part = self._source.read(wanted - len(block))
            if not part:
                raise FormatError(
                    tr(
                        "the image ends after {offset} of {size} bytes",
                        offset=offset + len(block),
                        size=self._size,
                    )
                )
            block += part
        return block.ljust(self._form.block_size, b"\0")


def _write_blocks(
    blocks: _Compressed, dest: BinaryIO, start: int, done: Callable[[int], None]
) -> bytes:
    """Write blocks end to end from `start` on and return the index of them.

    `done` is told how many are written.
    """
    flags = {codec: number << FLAGS_SHIFT for number, codec in enumerate(COMPRESSORS)}
    entries = array("Q")
    for codec, stored in blocks:
        with _storage_errors(tr("cannot write the cloop")):
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
