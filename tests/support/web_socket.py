"""A WebSocket as a browser opens it (RFC 6455), in the shape of a socket."""

from __future__ import annotations

import base64
import os
import socket
import struct
from urllib.parse import parse_qs, urlsplit

from tests.support.waiting import BOUND


class BrowserSocket:
    """The bytes of a WebSocket."""

    def __init__(self, link: str) -> None:
        """Connect as noVNC does that was opened by `link`."""
        parts = urlsplit(link)
        path = parse_qs(parts.fragment)["path"][0]
        self._sock = socket.create_connection((parts.hostname, parts.port), BOUND)
        key = base64.b64encode(os.urandom(16)).decode()
        self._sock.sendall(
            f"GET /{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: binary\r\n\r\n".encode()
        )
        self.answer = b""
        while not self.answer.endswith(b"\r\n\r\n"):
            self.answer += self._exactly(1)
        self._left = b""

    def sendall(self, data: bytes) -> None:
        """Send bytes in one frame."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
        assert len(data) < 1 << 16
        self._sock.sendall(struct.pack(">BBH", 0x82, 0x80 | 126, len(data)) + mask + masked)

    def recv(self, size: int) -> bytes:
        """Some bytes of the stream; none at its end."""
        while not self._left:
            kind, short = self._exactly(2)
            if kind == 0x88:
                return b""
            assert kind == 0x82, kind
            form = {126: ">H", 127: ">Q"}.get(short)
            (length,) = (
                struct.unpack(form, self._exactly(struct.calcsize(form))) if form else (short,)
            )
            self._left = self._exactly(length)
        data, self._left = self._left[:size], self._left[size:]
        return data

    def settimeout(self, seconds: float) -> None:
        """As of a socket."""
        self._sock.settimeout(seconds)

    def close(self) -> None:
        """As of a socket."""
        self._sock.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._sock.recv(size - len(data))
            assert piece, "the server hung up"
            data += piece
        return data
