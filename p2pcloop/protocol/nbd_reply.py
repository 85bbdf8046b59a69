"""The replies of an NBD server: simple ones, and chunks of structured ones if these were agreed on.

A chunk that is marked as the last one ends its reply: all data must be known to be right by then.
Source: doc/proto.md of NetworkBlockDevice/nbd ("Simple reply message", "Structured reply types").
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pcloop.protocol import nbd_wire as wire


class Replies:
    """Makes the replies of one connection.

    Attributes:
        structured: whether the client asked for structured replies.
        data_header_size: bytes of a `data_header`.
    """

    def __init__(self, *, structured: bool) -> None:
        self.structured = structured
        self.data_header_size = wire.DATA_CHUNK.size if structured else wire.SIMPLE_REPLY.size

    def done(self, cookie: int) -> bytes:
        """The whole reply to a successful request other than READ and BLOCK_STATUS."""
        return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, cookie)

    def error(self, cookie: int, error: int, message: str) -> bytes:
        """The whole reply to a request that failed; only structured ones carry the message."""
        if not self.structured:
            return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, cookie)
        text = message[: wire.MAX_STRING // 4].encode("utf-8")
        payload = wire.ERROR.pack(error, len(text)) + text
        return _chunk(wire.REPLY_TYPE_ERROR, cookie, payload)

    def data_header(self, cookie: int, offset: int, length: int, *, last: bool = True) -> bytes:
        """The header before the data of a READ; a simple reply has all data at once.

        Args:
            cookie: of the request.
            offset: of the data on the device.
            length: bytes of data that follow.
            last: whether this is the last chunk.
        """
        if not self.structured:
            return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, cookie)
        flags = wire.REPLY_FLAG_DONE if last else 0
        kind = wire.REPLY_TYPE_OFFSET_DATA
        return wire.DATA_CHUNK.pack(
            wire.STRUCTURED_REPLY_MAGIC, flags, kind, cookie, 8 + length, offset
        )

    def hole(self, cookie: int, offset: int, length: int, *, last: bool) -> bytes:
        """The chunk of a structured reply to READ that says that a stretch reads as zeros."""
        flags = wire.REPLY_FLAG_DONE if last else 0
        kind = wire.REPLY_TYPE_OFFSET_HOLE
        return wire.HOLE_CHUNK.pack(
            wire.STRUCTURED_REPLY_MAGIC, flags, kind, cookie, 12, offset, length
        )

    def block_status(self, cookie: int, context: int, extents: Iterable[tuple[int, int]]) -> bytes:
        """The whole structured reply to BLOCK_STATUS.

        Args:
            cookie: of the request.
            context: the id under which the client selected the metadata context.
            extents: length and flags of each extent, in order.
        """
        payload = wire.CONTEXT_ID.pack(context)
        payload += b"".join(wire.EXTENT.pack(length, flags) for length, flags in extents)
        return _chunk(wire.REPLY_TYPE_BLOCK_STATUS, cookie, payload)


def _chunk(kind: int, cookie: int, payload: bytes) -> bytes:
    header = wire.CHUNK.pack(
        wire.STRUCTURED_REPLY_MAGIC, wire.REPLY_FLAG_DONE, kind, cookie, len(payload)
    )
    return header + payload
