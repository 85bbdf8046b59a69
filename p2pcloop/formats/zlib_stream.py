"""Decode a zlib stream (RFC 1950) from outside: whole, of its size, and nothing behind it."""

from __future__ import annotations

from isal import isal_zlib

from p2pcloop.errors import FormatError


def decode_block(data: bytes | memoryview, block_size: int) -> bytes:
    """Return the content of one zlib stream (RFC 1950) that holds exactly `block_size` bytes.

    Never makes more than `block_size` + 1 bytes, whatever the stream claims. Other threads run
    meanwhile.

    Raises:
        FormatError: damaged, cut off, of another size, or followed by something.
    """
    # isal's one-shot decompress() is a quarter faster, but knows no limit to its output.
    stream = isal_zlib.decompressobj()
    try:
        block = stream.decompress(data, block_size + 1)
    except isal_zlib.error as err:  # type: ignore[misc]  # its stub gives an instance for the class
        raise FormatError(f"a zlib stream is damaged: {err}") from err
    if len(block) > block_size:
        raise FormatError(f"a zlib stream holds more than {block_size} bytes")
    if not stream.eof:
        raise FormatError("a zlib stream is cut off")
    if len(block) != block_size:
        raise FormatError(f"a zlib stream holds {len(block)} bytes, not {block_size}")
    if stream.unused_data:
        raise FormatError(f"{len(stream.unused_data)} bytes follow a zlib stream")
    return block
