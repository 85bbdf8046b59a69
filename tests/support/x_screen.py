"""A user's desktop without a screen: Xvfb, whose picture lies in a file, and keys pressed in it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from p2pcloopd.guest.display.access import authority_file, new_cookie
from p2pcloopd.programs import find_program
from tests.support.waiting import BOUND, wait_until
from tools.vnc import Colour, Region

WIDTH, HEIGHT = 800, 600
_PIXEL = 4
_HOVER = 1.0
"""Seconds after which what shows at a pointer that rests, a tooltip, is there."""


@dataclass(frozen=True)
class Desktop:
    """A desktop that runs.

    Attributes:
        environment: DISPLAY and XAUTHORITY of its user's programs.
        picture: the file that holds it (XWDFile.h).
        width: in pixels.
        height: in pixels.
    """

    environment: dict[str, str]
    picture: Path
    width: int = WIDTH
    height: int = HEIGHT

    def colours(self, region: Region) -> Counter[Colour]:
        """How many pixels of a part of the picture have which colour."""
        pixels, found = self._pixels(), Counter[int]()
        for row in range(region.top, region.top + region.height):
            start = row * self.width + region.left
            found.update(pixels[start : start + region.width])
        told = Counter[Colour]()
        for pixel, count in found.items():
            told[pixel >> 16 & 0xFF, pixel >> 8 & 0xFF, pixel & 0xFF] += count
        return told

    def count(self, colour: Colour) -> int:
        """How many pixels have exactly this colour."""
        return self.colours(Region(0, 0, self.width, self.height))[colour]

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until something is to be seen."""
        wait_until(condition, "the picture is not as it should be")

    def wait_until_still(self, seconds: float) -> None:
        """Wait until no pixel has changed for some seconds."""
        last, since = b"", time.monotonic()

        def is_still() -> bool:
            nonlocal last, since
            if (now := self.picture.read_bytes()) != last:
                last, since = now, time.monotonic()
            return time.monotonic() - since >= seconds

        wait_until(is_still, "the picture still changes")

    def click(self, x: int, y: int) -> None:
        """Click on something with the left button, as a hand does: rest there, press, and let go
        once the button is seen to be down."""
        self.point_at(x, y)
        self.wait_until_still(_HOVER)
        before = self.picture.read_bytes()
        self._xdotool("mousedown", "1")
        self.wait(lambda: self.picture.read_bytes() != before)
        self._xdotool("mouseup", "1")

    def type(self, text: str) -> None:
        """Press keys, for the window below the pointer; `\\n` is Enter."""
        for line in text.splitlines(keepends=True):
            self._xdotool("type", line.rstrip("\n"))
            if line.endswith("\n"):
                self._xdotool("key", "Return")

    def point_at(self, x: int, y: int) -> None:
        """Move the pointer."""
        self._xdotool("mousemove", str(x), str(y))

    def wait_for_window(self, title: str) -> None:
        """Return once a window has this title."""
        self._xdotool("search", "--sync", "--name", title)

    def _pixels(self) -> memoryview[int]:
        data = self.picture.read_bytes()
        (header,) = struct.unpack_from(">I", data)
        (colours,) = struct.unpack_from(">I", data, 19 * 4)
        size = _PIXEL * self.width * self.height
        return memoryview(data)[header + 12 * colours :][:size].cast("I")

    def _xdotool(self, *words: str) -> None:
        program = find_program("xdotool", "xdotool")
        environment = os.environ | self.environment
        subprocess.run(
            [program, *words], env=environment, check=True, timeout=BOUND, stdout=subprocess.DEVNULL
        )


@contextmanager
def desktop(folder: Path, width: int = WIDTH, height: int = HEIGHT) -> Iterator[Desktop]:
    """Run one; its files lie in `folder`."""
    authority = folder / "authority"
    authority.write_bytes(authority_file(new_cookie()))
    ready, when_ready = socket.socketpair()
    with ready, when_ready:
        process = subprocess.Popen(
            [
                *(find_program("Xvfb", "xvfb"), "-displayfd", str(when_ready.fileno())),
                *("-screen", "0", f"{width}x{height}x24", "-fbdir", folder, "-auth", authority),
                *("-nolisten", "tcp", "-noreset"),
            ],
            pass_fds=[when_ready.fileno()],
            stderr=subprocess.DEVNULL,
        )
        try:
            when_ready.close()
            ready.settimeout(BOUND)
            number = ready.recv(16).decode().strip()
            assert number, "Xvfb does not start"
            environment = {"DISPLAY": f":{number}", "XAUTHORITY": str(authority)}
            yield Desktop(environment, folder / "Xvfb_screen0", width, height)
        finally:
            process.kill()
            process.wait()
