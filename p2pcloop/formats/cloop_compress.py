"""Compress blocks for a cloop.

A block that does not shrink is stored by zlib; 64 KiB grow by 16 bytes. V4.0 has a codec for plain
blocks, but the kernel module of Debian's cloop-src 3.14.1.3 refuses them (its `uncompress` returns
-1).
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from functools import partial

import lz4.block

from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop_entries import max_compressed_size
from p2pcloop.formats.lzo import encode_lzo

Compress = Callable[[bytes], tuple[Codec, bytes]]
"""Returns the codec and the stored bytes of a block; runs on any thread."""

_LEAST_DICTIONARY = 4096
"""LZMA_DICT_SIZE_MIN of liblzma."""

_XZ_CHECK_AT = 7
"""The byte of an .xz stream that names its check (the .xz file format, 2.1.1.2)."""


def zlib_compressor(level: int) -> Compress:
    """For V2.0, which has nothing but zlib.

    Args:
        level: zlib's, 0 (stored) to 9 (smallest).
    """
    return lambda block: (Codec.ZLIB, zlib.compress(block, level))


def smallest_compressor(codec: Codec, level: int) -> Compress:
    """For V4.0: by `codec`, or by zlib if that is not larger.

    Args:
        codec: one of `CODECS`.
        level: of zlib.
    """
    encode = partial(zlib.compress, level=level) if codec is Codec.ZLIB else _ENCODERS[codec]

    def compress(block: bytes) -> tuple[Codec, bytes]:
        stored = encode(block)
        if len(stored) < len(block):
            return codec, stored
        return Codec.ZLIB, zlib.compress(block, 0)

    return compress


def can_stay(codec: Codec, stored: bytes, block_size: int) -> bool:
    """Whether a block may be taken over from another cloop, as it is stored there.

    The kernel module knows no other check of xz than CRC-32, and a V2.0 has a lower limit for the
    length of a block than a V4.0.
    """
    if codec is Codec.XZ and stored[_XZ_CHECK_AT : _XZ_CHECK_AT + 1] != bytes([lzma.CHECK_CRC32]):
        return False
    return len(stored) <= max_compressed_size(block_size)


def _encode_xz(block: bytes) -> bytes:
    """One .xz stream. The kernel's decoder knows no other check than CRC-32 (XZ Embedded)."""
    # Presets above 6 differ by their dictionary; "extreme" is slower and here not smaller.
    dictionary = max(len(block), _LEAST_DICTIONARY)
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": dictionary}
    return lzma.compress(block, check=lzma.CHECK_CRC32, filters=[lzma2])


def _encode_lz4(block: bytes) -> bytes:
    # Level 12 takes four times as long and saves 0.3 %.
    stored: bytes = lz4.block.compress(
        block, mode="high_compression", compression=9, store_size=False
    )
    return stored


_ENCODERS: dict[Codec, Callable[[bytes], bytes]] = {
    Codec.XZ: _encode_xz,
    Codec.LZ4: _encode_lz4,
    Codec.LZO: encode_lzo,
}

CODECS = (Codec.ZLIB, *_ENCODERS)
"""The codecs with which blocks of V4.0 are written."""
