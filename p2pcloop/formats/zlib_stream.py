"""Decoding a zlib stream (RFC 1950) from outside: whole, bounded, with nothing behind it."""

from __future__ import annotations

from typing import Protocol

from isal import isal_zlib

from p2pcloop.errors import FormatError
from p2pcloop.words import tr


def decode_block(data: bytes | memoryview, block_size: int) -> bytes:
    """Return the content of one zlib stream (RFC 1950) that holds exactly `block_size` bytes.

    Never makes more than `block_size` + 1 bytes, even if the stream claims more. Other threads run
    meanwhile.

    Raises:
        FormatError: damaged, cut off, of another size, or followed by something.
    """
    block = decode_block_up_to(data, block_size)
    check_size(block, block_size, tr("a zlib stream"))
    return block


def decode_block_up_to(data: bytes | memoryview, most: int) -> bytes:
    """Return the content of one zlib stream that holds at most `most` bytes; see `decode_block`.

    Raises:
        FormatError: damaged, cut off, longer, or followed by something.
    """
    # isal's one-shot decompress() is a quarter faster, but knows no limit to its output.
    stream = isal_zlib.decompressobj()
    try:
        block = stream.decompress(data, most + 1)
    except isal_zlib.error as err:  # type: ignore[misc]  # its stub gives an instance for the class
        raise FormatError(tr("a zlib stream is damaged: {err}", err=err)) from err
    check_stream(stream, block, most, tr("a zlib stream"))
    return block


class Stream(Protocol):
    """A decompressor of the standard library's kind, after it got all input."""

    @property
    def eof(self) -> bool:
        """Whether the stream ended."""

    @property
    def unused_data(self) -> bytes:
        """The bytes behind the stream."""


def check_stream(stream: Stream, content: bytes, most: int, what: str) -> None:
    """Check that a stream ended, nothing follows it, and it held at most `most` bytes.

    Args:
        content: the decoded bytes, of which at most `most` + 1 were asked for.
        what: the stream, for the message.

    Raises:
        FormatError: cut off, longer, or followed by something.
    """
    if len(content) > most:
        raise FormatError(tr("{what} holds more than {size} bytes", what=what, size=most))
    if not stream.eof:
        raise FormatError(tr("{what} is cut off", what=what))
    if stream.unused_data:
        raise FormatError(
            tr(
                "{unused_data_count} bytes follow {what}",
                unused_data_count=len(stream.unused_data),
                what=what,
            )
        )


def check_size(content: bytes, size: int, what: str) -> None:
    """Check that content has exactly `size` bytes.

    Args:
        what: what held it, for the message.

    Raises:
        FormatError: it has another size.
    """
    if len(content) != size:
        raise FormatError(
            tr(
                "{what} holds {content_count} bytes, not {size}",
                what=what,
                content_count=len(content),
                size=size,
            )
        )
