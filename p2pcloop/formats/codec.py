"""Decoding stored chunks and blocks, never beyond a given size.

The codecs are plain, zlib (RFC 1950) and zstd (RFC 8878); of cloops also xz (its .xz container),
LZ4 and LZO1X (raw blocks). Chunks of chains, which are not decoded alone, are in lzma_chain.py. Of
the blocks of other formats only the most is known that they may hold: `decode_…_up_to`.
"""

from __future__ import annotations

import lzma
import threading

import lz4.block
import zstandard

from p2pcloop.errors import FormatError
from p2pcloop.formats.chunk_table import CHAINED, Codec
from p2pcloop.formats.lzo import decode_lzo
from p2pcloop.formats.zlib_stream import check_size, check_stream, decode_block
from p2pcloop.words import tr

_XZ_MEMORY = 66 << 20
"""Memory that a file of `xz -9` asks for: a dictionary of 64 MiB, and a little. Only as many bytes
of it are touched as the chunk has."""


class _Decompressors(threading.local):
    """A zstd context for each thread: one must not be used by two at once."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_decompressors = _Decompressors()


def decode(codec: Codec, stored: bytes, size: int) -> bytes:
    """Return the content of stored bytes, which must be exactly `size` bytes long.

    Plain content may lack zeros at its end, so that a raw image whose size is not a multiple of
    4 KiB is a pack in place. Other threads run meanwhile.

    Raises:
        FormatError: the bytes are damaged or decode to another size, or are of a chain.
        NeedsPackageError: LZO without its library.
    """
    if decoder := _DECODERS.get(codec):
        return decoder(stored, size)
    if codec in CHAINED:
        raise FormatError("a chunk of a chain is decoded after those before it, and not alone")
    if len(stored) > size:
        raise FormatError(
            tr(
                "a chunk of {size} bytes is stored plainly in {stored_count}",
                size=size,
                stored_count=len(stored),
            )
        )
    return stored.ljust(size, b"\0")


def decode_zstd(stored: bytes, size: int) -> bytes:
    """Return the content of one zstd frame that states its size and holds exactly `size` bytes.

    Raises:
        FormatError: anything else.
    """
    content = decode_zstd_up_to(stored, size)
    check_size(content, size, tr("a zstd frame"))
    return content


def decode_zstd_up_to(stored: bytes, most: int) -> bytes:
    """Return the content of one zstd frame that states its size and holds at most `most` bytes.

    Raises:
        FormatError: anything else.
    """
    try:
        # The library allocates the size that the frame claims, despite any limit: check it first.
        if not 0 <= zstandard.frame_content_size(stored) <= most:
            raise FormatError(
                tr("a zstd frame does not state that it holds at most {size} bytes", size=most)
            )
        return _decompressors.zstd.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise FormatError(tr("zstd data does not decompress: {err}", err=err)) from err


def decode_xz(stored: bytes, size: int) -> bytes:
    """Return the content of one .xz stream that holds exactly `size` bytes, checked by its check.

    Raises:
        FormatError: damaged, cut off, of another size, followed by more bytes, or it asks for
            more memory than `xz -9` does.
    """
    content = decode_xz_up_to(stored, size)
    check_size(content, size, tr("an xz stream"))
    return content


def decode_xz_up_to(stored: bytes, most: int) -> bytes:
    """Return the content of one .xz stream that holds at most `most` bytes, checked by its check.

    Raises:
        FormatError: as of `decode_xz`, but shorter content is right.
    """
    try:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        content = stream.decompress(stored, most + 1)
    except lzma.LZMAError as err:
        raise FormatError(tr("an xz stream is damaged: {err}", err=err)) from err
    check_stream(stream, content, most, tr("an xz stream"))
    return content


def decode_lz4(stored: bytes, size: int) -> bytes:
    """Return the content of one raw LZ4 block that holds exactly `size` bytes.

    Raises:
        FormatError: damaged, cut off, of another size, or followed by something.
    """
    content = decode_lz4_up_to(stored, size)
    check_size(content, size, tr("an LZ4 block"))
    return content


def decode_lz4_up_to(stored: bytes, most: int) -> bytes:
    """Return the content of one raw LZ4 block that holds at most `most` bytes.

    Raises:
        FormatError: damaged, cut off, longer, or followed by something.
    """
    try:
        content: bytes = lz4.block.decompress(stored, uncompressed_size=most)
    except lz4.block.LZ4BlockError as err:
        raise FormatError(
            tr("an LZ4 block is damaged or longer than {size} bytes", size=most)
        ) from err
    return content


_DECODERS = {
    Codec.ZLIB: decode_block,
    Codec.ZSTD: decode_zstd,
    Codec.XZ: decode_xz,
    Codec.LZ4: decode_lz4,
    Codec.LZO: decode_lzo,
}
