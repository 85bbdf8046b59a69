"""The server's side of a WebSocket that carries bytes (RFC 6455); sans-io.

Messages have no meaning here: their bytes are one stream, however they are cut into frames.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Mapping

from p2pcloop.errors import FormatError
from p2pcloop.words import tr

VERSION = b"13"
MAX_FRAME = 1 << 20
"""Bytes of a frame that a browser may send; a viewer's keys and clipboard are shorter."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES = 16
_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x2, 0x8, 0x9, 0xA
_FINAL, _RESERVED, _MASKED, _CONTROL = 0x80, 0x70, 0x80, 0x8
_SHORT = 125


def accept_key(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the header Sec-WebSocket-Accept that answers a request.

    Args:
        headers: of the request, their names in small letters.

    Raises:
        FormatError: it asks for no WebSocket, or for one of another version.
    """
    upgrades = {word.strip().lower() for word in headers.get(b"connection", b"").split(b",")}
    if b"upgrade" not in upgrades or headers.get(b"upgrade", b"").lower() != b"websocket":
        raise FormatError("a request that asks for no WebSocket")
    if headers.get(b"sec-websocket-version") != VERSION:
        raise FormatError("a WebSocket of another version")
    key = headers.get(b"sec-websocket-key", b"")
    try:
        is_good = len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except binascii.Error:
        is_good = False
    if not is_good:
        raise FormatError("a WebSocket with a bad key")
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def encode_bytes(data: bytes) -> bytes:
    """Return a frame with some bytes of the stream."""
    return _frame(_BINARY, data)


def encode_close(code: int = 1000) -> bytes:
    """Return the frame that closes the WebSocket."""
    return _frame(_CLOSE, struct.pack(">H", code))


def _frame(kind: int, data: bytes) -> bytes:
    if len(data) <= _SHORT:
        head = struct.pack(">BB", _FINAL | kind, len(data))
    elif len(data) < 1 << 16:
        head = struct.pack(">BBH", _FINAL | kind, 126, len(data))
    else:
        head = struct.pack(">BBQ", _FINAL | kind, 127, len(data))
    return head + data


class WebSocketReader:
    """What a browser sends, taken apart.

    Attributes:
        closed: whether it has closed the WebSocket; nothing follows.
    """

    def __init__(self) -> None:
        self.closed = False
        self._data = b""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take what came next.

        Returns:
            The bytes of the stream in it, and what is to be answered at once.

        Raises:
            FormatError: it is no WebSocket's, or has text.
        """
        self._data += data
        stream, answer = b"", b""
        while not self.closed and (frame := self._next()) is not None:
            kind, payload = frame
            if kind in (_BINARY, _CONTINUATION):
                stream += payload
            elif kind == _PING:
                answer += _frame(_PONG, payload)
            elif kind == _CLOSE:
                self.closed = True
                answer += _frame(_CLOSE, payload[:2])
            elif kind != _PONG:
                raise FormatError(tr("a WebSocket's frame of kind {kind}", kind=kind))
        return stream, answer

    def _next(self) -> tuple[int, bytes] | None:
        """Kind and payload of the next frame, once it is whole."""
        if len(self._data) < 2:
            return None
        first, second = self._data[:2]
        kind, size, place = first & 0xF, second & ~_MASKED, 2
        if first & _RESERVED or not second & _MASKED:
            raise FormatError("a WebSocket's frame that no browser sends")
        if kind & _CONTROL and (size > _SHORT or not first & _FINAL):
            raise FormatError("a WebSocket's control frame that is long")
        if size > _SHORT:
            form = ">H" if size == 126 else ">Q"
            place += struct.calcsize(form)
            if len(self._data) < place:
                return None
            (size,) = struct.unpack_from(form, self._data, 2)
        if size > MAX_FRAME:
            raise FormatError(tr("a WebSocket's frame of {size} bytes", size=size))
        end = place + 4 + size
        if len(self._data) < end:
            return None
        mask, payload = self._data[place : place + 4], self._data[place + 4 : end]
        self._data = self._data[end:]
        return kind, _unmask(mask, payload)


def _unmask(mask: bytes, data: bytes) -> bytes:
    repeated = (mask * (len(data) // 4 + 1))[: len(data)]
    number = int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")
    return number.to_bytes(len(data), "big")
