"""Decoding blocks of a squashfs, of which only the most is known that they may hold.

Sources: squashfs_fs.h and the wrappers beside it (fs/squashfs of the kernel). XZ blocks are whole
.xz streams, zstd blocks whole frames that state their size; LZO and LZ4 blocks are raw.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable

import lz4.block
import zstandard

from p2pcloop.errors import FormatError
from p2pcloop.formats.lzo import decode_lzo_up_to
from p2pcloop.words import tr

Decode = Callable[[bytes, int], bytes]
"""Returns the content of a block: what is stored, the most bytes that it may hold. It raises
`FormatError` where the block is damaged or holds more, and `NeedsPackageError` for LZO without its
library."""

_XZ_MEMORY = 16 << 20
"""A dictionary is no longer than a block, which has at most 1 MiB."""


def _zlib(stored: bytes, most: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(stored, most + 1)
    except zlib.error as err:
        raise FormatError(tr("a zlib block is damaged: {err}", err=err)) from err
    return _whole(content, most, ended=stream.eof)


def _xz(stored: bytes, most: int) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    try:
        content = stream.decompress(stored, most + 1)
    except lzma.LZMAError as err:
        raise FormatError(tr("an xz block is damaged: {err}", err=err)) from err
    return _whole(content, most, ended=stream.eof)


def _lz4(stored: bytes, most: int) -> bytes:
    try:
        content: bytes = lz4.block.decompress(stored, uncompressed_size=most)
    except lz4.block.LZ4BlockError as err:
        raise FormatError(tr("an LZ4 block is damaged or too long")) from err
    return content


def _zstd(stored: bytes, most: int) -> bytes:
    try:
        # The library allocates the size that the frame claims: check it first.
        size = zstandard.frame_content_size(stored)
        if not 0 <= size <= most:
            raise FormatError(tr("a zstd block does not state a size that it may have"))
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise FormatError(tr("a zstd block is damaged: {err}", err=err)) from err


def _whole(content: bytes, most: int, *, ended: bool) -> bytes:
    if len(content) > most or not ended:
        raise FormatError(tr("a block is cut off, or holds more than it may"))
    return content


DECODERS: dict[int, Decode] = {1: _zlib, 3: decode_lzo_up_to, 4: _xz, 5: _lz4, 6: _zstd}
"""By the number of the compression in the superblock. 2 is LZMA, which no kernel reads."""
