"""A VNC viewer (RFC 6143) that looks at the picture and types."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

from p2pcloopd.guest.display.access import vnc_des
from tests.support.waiting import BOUND

NO_PASSWORD, BY_PASSWORD = 1, 2
_RAW = 0
_ENTER = 0xFF0D

Colour = tuple[int, int, int]
"""Red, green, blue."""


class RefusedError(Exception):
    """The server lets this viewer not in; the reason that it gives."""


class Viewer:
    """A viewer of one display; as a context manager, it leaves at the end.

    Attributes:
        offered: the ways to authenticate that the server offered.
        width: of the screen, in pixels.
        height: of the screen, in pixels.
        title: of the screen.
    """

    def __init__(self, address: str, password: str) -> None:
        host, _, port = address.rpartition(":")
        self._sock = socket.create_connection((host, int(port)), timeout=BOUND)
        try:
            self._connect(password)
        except BaseException:
            self._sock.close()
            raise
        self._picture = bytearray(4 * self.width * self.height)
        self._asked = False

    def _connect(self, password: str) -> None:
        assert self._read(12) == b"RFB 003.008\n"
        self._sock.sendall(b"RFB 003.008\n")
        self.offered = set(self._read(self._read(1)[0]))
        self._sock.sendall(bytes([BY_PASSWORD]))
        self._sock.sendall(vnc_des(password.encode().ljust(8, b"\0"), self._read(16)))
        if self._read(4) != bytes(4):
            raise RefusedError(self._text())
        self._sock.sendall(b"\1")  # shared with other viewers
        self.width, self.height = struct.unpack(">HH", self._read(4))
        self._read(16)
        self.title = self._text()
        # 32 bits a pixel, little endian: blue, green, red, nothing.
        self._sock.sendall(struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, *[255] * 3, 16, 8, 0))
        self._sock.sendall(struct.pack(">BxHi", 2, 1, _RAW))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def count(self, colour: Colour) -> int:
        """How many pixels of the picture, as it was last seen, have exactly this colour."""
        red, green, blue = colour
        pixels = memoryview(self._picture).cast("I")
        wanted = red << 16 | green << 8 | blue
        return sum(pixel & 0xFFFFFF == wanted for pixel in pixels)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Look at each change of the picture until `condition` is true."""
        self._sock.settimeout(BOUND)
        while not condition():
            self._update()

    def type(self, text: str) -> None:
        """Press and release a key for each character of ASCII; `\\n` is Enter."""
        for character in text:
            key = _ENTER if character == "\n" else ord(character)
            for down in (1, 0):
                self._sock.sendall(struct.pack(">BBxxI", 4, down, key))

    def _update(self) -> None:
        """Take the next change of the picture."""
        area = (0, 0, self.width, self.height)
        self._sock.sendall(struct.pack(">BBHHHH", 3, self._asked, *area))
        self._asked = True
        while (kind := self._read(1)[0]) != 0:
            assert kind in (2, 3), f"message {kind} of the server"
            if kind == 3:  # its clipboard
                self._read(3)
                self._text()
        (rectangles,) = struct.unpack(">xH", self._read(3))
        for _ in range(rectangles):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self._read(12))
            assert encoding == _RAW
            for row in range(y, y + height):
                place = 4 * (row * self.width + x)
                self._picture[place : place + 4 * width] = self._read(4 * width)

    def _text(self) -> str:
        (size,) = struct.unpack(">I", self._read(4))
        return self._read(size).decode(errors="replace")

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._sock.recv(size - len(data))
            assert piece, "the server hung up"
            data += piece
        return data
