"""How chunks are stored: plain, zlib (RFC 1950) or zstd (RFC 8878), and back, never past a size."""

from __future__ import annotations

import threading

import zstandard

from p2pcloop.errors import FormatError
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.zlib_stream import decode_block


class _Decompressors(threading.local):
    """A zstd context for each thread: one must not be used by two at once."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_decompressors = _Decompressors()


def decode(codec: Codec, stored: bytes, size: int) -> bytes:
    """Return the content of stored bytes, which must be exactly `size` bytes long.

    What is stored plainly may leave out zeros at its end: so a raw image whose size is not a
    multiple of 4 KiB is a pack as it lies.

    Raises:
        FormatError: the bytes are damaged or decode to another size.
    """
    if codec is Codec.ZLIB:
        return decode_block(stored, size)
    if codec is Codec.ZSTD:
        return decode_zstd(stored, size)
    if len(stored) > size:
        raise FormatError(f"a chunk of {size} bytes is stored plainly in {len(stored)}")
    return stored.ljust(size, b"\0")


def decode_zstd(stored: bytes, size: int) -> bytes:
    """Return the content of one zstd frame that states its size and holds exactly `size` bytes.

    Raises:
        FormatError: anything else.
    """
    try:
        # The library allocates what the frame claims, whatever limit it is given: look first.
        if zstandard.frame_content_size(stored) != size:
            raise FormatError(f"a zstd frame does not state the {size} bytes that it should hold")
        return _decompressors.zstd.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise FormatError(f"zstd data does not decompress: {err}") from err
