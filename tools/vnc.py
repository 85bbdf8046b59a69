"""A VNC viewer that looks at the picture, clicks and types (RFC 6143).

Pixels come as they are (the Raw encoding), from a screen that keeps its size. The libraries for it
bring event loops of their own (Twisted, asyncio); this is a socket and a picture.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from PIL import Image

from p2pcloopd.guest.display.access import vnc_des

NO_PASSWORD, BY_PASSWORD = 1, 2
_VERSION = b"RFB 003.008\n"
_RAW = 0
_PIXEL = 4
# 32 bits a pixel, little-endian: red in the first byte, then green, blue and nothing.
_PIXELS = struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, 255, 255, 255, 0, 8, 16)
_ENTER = 0xFF0D
_LEFT_BUTTON = 1
_HOVER = 1.0
"""Seconds after which what shows at a pointer that rests, a tooltip, is there."""

_BOUND = 120.0
"""Seconds after which the server has failed."""

Colour = tuple[int, int, int]
"""Red, green, blue."""


class RefusedError(Exception):
    """The server does not let this viewer in; the reason that it gives."""


class VncError(Exception):
    """The server hung up, or said what this viewer does not understand."""


class NotShownError(VncError):
    """The picture did not become as it should in time."""


class Region(NamedTuple):
    """A part of the picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


class Viewer:
    """A viewer of one display; as a context manager, it leaves at the end.

    Attributes:
        offered: the ways to authenticate that the server offered.
        width: of the screen, in pixels.
        height: of the screen, in pixels.
        title: of the screen.
        changed: the time.monotonic() at which the picture last changed, or first was asked for.
    """

    def __init__(self, address: str, password: str | None) -> None:
        """Connect to `HOST:PORT`.

        Args:
            password: None for a server that asks for none.

        Raises:
            RefusedError: the server does not want this viewer.
            VncError: it is no VNC server.
            OSError: there is none.
        """
        host, _, port = address.rpartition(":")
        self._sock = socket.create_connection((host, int(port)), timeout=_BOUND)
        try:
            self._connect(password)
        except BaseException:
            self._sock.close()
            raise
        self._picture = bytearray(_PIXEL * self.width * self.height)
        self.changed = time.monotonic()
        self._ask(incremental=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._sock.close()

    def wait(self, condition: Callable[[], bool], limit: float = _BOUND) -> None:
        """Look at each change of the picture until `condition` is true.

        Raises:
            NotShownError: it is not after `limit` seconds.
        """
        end = time.monotonic() + limit
        while not condition():
            left = end - time.monotonic()
            if left <= 0:
                raise NotShownError(f"the picture is not as it should be after {limit:.0f} s")
            self._take(left)

    def wait_until_still(self, seconds: float, limit: float = _BOUND) -> None:
        """Wait until no pixel has changed for some seconds.

        Raises:
            NotShownError: it still changes after `limit` seconds.
        """
        end = time.monotonic() + limit
        while (left := self.changed + seconds - time.monotonic()) > 0:
            if time.monotonic() > end:
                raise NotShownError(f"the picture still changes after {limit:.0f} s")
            self._take(left)

    def wait_for_change(self) -> None:
        """Wait until a pixel changes."""
        before = self.changed
        self.wait(lambda: self.changed != before)

    def colours(self, region: Region) -> Counter[Colour]:
        """How many pixels of a part of the picture, as it was last seen, have which colour."""
        found: Counter[bytes] = Counter()
        for row in range(region.top, region.top + region.height):
            start = _PIXEL * (row * self.width + region.left)
            line = bytes(self._picture[start : start + _PIXEL * region.width])
            found.update(line[at : at + 3] for at in range(0, len(line), _PIXEL))
        return Counter({(each[0], each[1], each[2]): n for each, n in found.items()})

    def count(self, colour: Colour) -> int:
        """How many pixels of the whole picture have exactly this colour."""
        return self.colours(Region(0, 0, self.width, self.height))[colour]

    def picture(self) -> Image.Image:
        """The picture as it was last seen."""
        size = self.width, self.height
        return Image.frombytes("RGB", size, bytes(self._picture), "raw", "RGBX")

    def save(self, path: Path) -> None:
        """Write the picture to a file, of the kind that its name tells."""
        self.picture().save(path)

    def click(self, x: int, y: int) -> None:
        """Click on something with the left button, as a hand does: rest there, press, and let go
        once the button is seen to be down. jwm misses a release that comes with the press."""
        self._point(x, y, buttons=0)
        self.wait_until_still(_HOVER)
        self._point(x, y, buttons=_LEFT_BUTTON)
        self.wait_for_change()
        self._point(x, y, buttons=0)

    def point_away(self) -> None:
        """Rest the pointer where nothing shows a tooltip: towards the lower right corner."""
        self._point(self.width * 3 // 4, self.height * 3 // 4, buttons=0)

    def _point(self, x: int, y: int, *, buttons: int) -> None:
        self._sock.sendall(struct.pack(">BBHH", 5, buttons, x, y))

    def type(self, text: str) -> None:
        """Press and release a key for each character of ASCII; `\\n` is Enter."""
        for character in text:
            key = _ENTER if character == "\n" else ord(character)
            for down in (1, 0):
                self._sock.sendall(struct.pack(">BBxxI", 4, down, key))

    def _connect(self, password: str | None) -> None:
        if self._read(len(_VERSION)) != _VERSION:
            raise VncError("this is no VNC server of version 3.8")
        self._sock.sendall(_VERSION)
        self.offered = set(self._read(self._read(1)[0]))
        if password is None:
            self._sock.sendall(bytes([NO_PASSWORD]))
        else:
            self._sock.sendall(bytes([BY_PASSWORD]))
            self._sock.sendall(vnc_des(password.encode().ljust(8, b"\0"), self._read(16)))
        if self._read(4) != bytes(4):
            raise RefusedError(self._text())
        self._sock.sendall(b"\1")  # shared with other viewers
        self.width, self.height = struct.unpack(">HH", self._read(4))
        self._read(16)
        self.title = self._text()
        self._sock.sendall(_PIXELS + struct.pack(">BxHi", 2, 1, _RAW))

    def _ask(self, *, incremental: bool) -> None:
        """Ask for the next change of the picture."""
        area = (0, 0, self.width, self.height)
        self._sock.sendall(struct.pack(">BBHHHH", 3, incremental, *area))

    def _take(self, seconds: float) -> None:
        """Take one message, if one comes in time."""
        self._sock.settimeout(seconds)
        try:
            kind = self._sock.recv(1)
        except TimeoutError:
            return
        finally:
            self._sock.settimeout(_BOUND)
        if kind == b"\0":
            if self._update():
                self.changed = time.monotonic()
            self._ask(incremental=True)
        elif kind == b"\3":  # its clipboard
            self._read(3)
            self._text()
        elif kind != b"\2":  # a bell
            raise VncError(f"the server sent the message {kind!r}" if kind else "it hung up")

    def _update(self) -> bool:
        """Take over an update; return whether it changed a pixel."""
        changed = False
        (rectangles,) = struct.unpack(">xH", self._read(3))
        for _ in range(rectangles):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self._read(12))
            if encoding != _RAW:
                raise VncError(f"the server sent pixels in the encoding {encoding}")
            size = _PIXEL * width
            for row in range(y, y + height):
                place = _PIXEL * (row * self.width + x)
                pixels = self._read(size)
                changed |= self._picture[place : place + size] != pixels
                self._picture[place : place + size] = pixels
        return changed

    def _text(self) -> str:
        (size,) = struct.unpack(">I", self._read(4))
        return self._read(size).decode(errors="replace")

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._sock.recv(size - len(data))
            if not piece:
                raise VncError("the server hung up")
            data += piece
        return bytes(data)
