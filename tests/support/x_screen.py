"""A user's desktop without a screen: Xvfb, whose picture lies in a file, and keys pressed in it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from p2pcloopd.guest.display.access import authority_file, new_cookie
from p2pcloopd.programs import find_program
from tests.support.waiting import BOUND

WIDTH, HEIGHT = 800, 600


@dataclass(frozen=True)
class Desktop:
    """A desktop that runs.

    Attributes:
        environment: DISPLAY and XAUTHORITY of its user's programs.
        picture: the file that holds it (XWDFile.h).
    """

    environment: dict[str, str]
    picture: Path

    def count(self, colour: tuple[int, int, int]) -> int:
        """How many pixels have exactly this colour."""
        data = self.picture.read_bytes()
        header, *_ = struct.unpack_from(">I", data)
        (colours,) = struct.unpack_from(">I", data, 19 * 4)
        pixels = memoryview(data)[header + 12 * colours :][: 4 * WIDTH * HEIGHT].cast("I")
        red, green, blue = colour
        wanted = red << 16 | green << 8 | blue
        return sum(pixel & 0xFFFFFF == wanted for pixel in pixels)

    def type(self, text: str) -> None:
        """Press keys, for the window below the pointer."""
        self._xdotool("type", text)

    def press(self, key: str) -> None:
        """Press one key, by its name."""
        self._xdotool("key", key)

    def point_at(self, x: int, y: int) -> None:
        """Move the pointer."""
        self._xdotool("mousemove", str(x), str(y))

    def wait_for_window(self, title: str) -> None:
        """Return once a window has this title."""
        self._xdotool("search", "--sync", "--name", title)

    def _xdotool(self, *words: str) -> None:
        program = find_program("xdotool", "xdotool")
        environment = os.environ | self.environment
        subprocess.run(
            [program, *words], env=environment, check=True, timeout=BOUND, stdout=subprocess.DEVNULL
        )


@contextmanager
def desktop(folder: Path) -> Iterator[Desktop]:
    """Run one; its files lie in `folder`."""
    authority = folder / "authority"
    authority.write_bytes(authority_file(new_cookie()))
    ready, when_ready = socket.socketpair()
    with ready, when_ready:
        process = subprocess.Popen(
            [
                *(find_program("Xvfb", "xvfb"), "-displayfd", str(when_ready.fileno())),
                *("-screen", "0", f"{WIDTH}x{HEIGHT}x24", "-fbdir", folder, "-auth", authority),
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
            yield Desktop(environment, folder / "Xvfb_screen0")
        finally:
            process.kill()
            process.wait()
