"""Write cloop V2.0, byte for byte what create_compressed_fs writes at the same level of zlib."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import BinaryIO

from p2pcloop.errors import FormatError, UsageError, storage_error
from p2pcloop.formats.cloop import (
    HEADER_SIZE,
    MAX_BLOCK_COUNT,
    MAX_BLOCK_SIZE,
    PREAMBLE_SIZE,
    CloopHeader,
)
from p2pcloop.units import SECTOR_SIZE, format_size

# qemu recognises the format by these very lines (cloop_probe in its block/cloop.c).
_PREAMBLE = (
    b"#!/bin/sh\n"
    b"#V2.0 Format\n"
    b"modprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    b"exit $?\n"
)


def write_cloop(
    source: BinaryIO,
    size: int,
    dest: BinaryIO,
    *,
    block_size: int = 65536,
    level: int = 9,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> CloopHeader:
    """Compress a raw image into a cloop.

    The header is written last, so that what an error or a crash leaves is no cloop. At most
    three blocks a worker are in memory.

    Args:
        source: the raw image, read from where it stands; may be a pipe.
        size: bytes of the image, at least 1. Zeros fill the last block up.
        dest: empty or to be overwritten from its start; seekable. Neither flushed nor synced.
        block_size: bytes; a multiple of 512, at most 1 MiB.
        level: zlib's, 0 (stored) to 9 (smallest).
        workers: compressing threads; as many as this process may use CPUs when not given.
        progress: called with the bytes of the image done so far, after each block.

    Raises:
        UsageError: a block size or level that the format or zlib does not have.
        FormatError: the image is empty, too large, or shorter than `size`.
        StorageError: reading or writing failed.
    """
    if not SECTOR_SIZE <= block_size <= MAX_BLOCK_SIZE or block_size % SECTOR_SIZE:
        raise UsageError(f"a block size of {block_size} is not a multiple of 512 up to 1 MiB")
    if not 0 <= level <= zlib.Z_BEST_COMPRESSION:
        raise UsageError(f"a compression level of {level} is not from 0 to 9")
    header = _header_for(size, block_size)
    offsets = array("Q", [HEADER_SIZE + 8 * (header.block_count + 1)])
    with _storage_errors("cannot write the cloop"):
        dest.seek(0)
        dest.truncate()
        dest.seek(offsets[0])
    blocks = _read_blocks(source, size, block_size)
    workers = workers or len(os.sched_getaffinity(0))
    with closing(_compress(blocks, bytes(block_size), level, workers)) as compressed:
        for data in compressed:
            with _storage_errors("cannot write the cloop"):
                dest.write(data)
            offsets.append(offsets[-1] + len(data))
            if progress:
                progress(min(size, (len(offsets) - 1) * block_size))
    with _storage_errors("cannot write the cloop"):
        dest.seek(0)
        dest.write(_PREAMBLE.ljust(PREAMBLE_SIZE, b"\0"))
        dest.write(struct.pack(">II", header.block_size, header.block_count))
        if sys.byteorder == "little":
            offsets.byteswap()
        dest.write(offsets.tobytes())
    return header


def _header_for(size: int, block_size: int) -> CloopHeader:
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


def _compress(blocks: Iterable[bytes], zeros: bytes, level: int, workers: int) -> Generator[bytes]:
    """Yield each block compressed, in order; blocks of zeros are compressed once."""
    compressed_zeros = zlib.compress(zeros, level)
    pending: deque[Future[bytes] | bytes] = deque()

    def take() -> bytes:
        head = pending.popleft()
        return head if isinstance(head, bytes) else head.result()

    with ThreadPoolExecutor(workers, thread_name_prefix="cloop") as pool:
        for block in blocks:
            if block == zeros:
                pending.append(compressed_zeros)
            else:
                pending.append(pool.submit(zlib.compress, block, level))
            if len(pending) >= 3 * workers:
                yield take()
        while pending:
            yield take()


@contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise storage_error(what, err) from err
