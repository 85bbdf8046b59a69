"""Use a desktop by its VNC server: open a terminal, or see that all is there and type.

Run as a program on the host whose port leads to the server, with the server's ADDRESS and a file
for the PICTURE:

    python -m bench.links.use_desktop prepare ADDRESS PICTURE
        waits until XFce is complete and rests, opens a terminal, and writes the picture
    python -m bench.links.use_desktop answer ADDRESS PICTURE
        waits until the picture is that one, presses a key and waits for its letter; prints the
        time.monotonic() of both, or `inf` for what did not come

The clock of the panel is no part of the comparison.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from PIL import Image, ImageChops

from bench.links.watch_desktop import watch
from tools.desktop_look import XFCE
from tools.vnc import NotShownError, Region, Viewer, VncError

TERMINAL = Region(10, 90, 630, 370)
"""A part of the terminal's window, below its first lines."""

_REST = 8.0
_LETTER = "p"
_PAUSE = 0.05
_BOOT_BOUND, _BOUND = 1500.0, 120.0
"""Seconds that a desktop may take to be there, as it boots without KVM on a busy machine, and as it
goes on."""


def connected(address: str, limit: float) -> Viewer:
    """A viewer, as soon as the server is there.

    Raises:
        NotShownError: it is not there within `limit` seconds.
    """
    end = time.monotonic() + limit
    while True:
        try:
            return Viewer(address, None)
        except (VncError, OSError) as err:
            if time.monotonic() > end:
                raise NotShownError(f"there is no VNC server at {address}: {err}") from err
            time.sleep(_PAUSE)


def differences(one: Image.Image, other: Image.Image) -> tuple[int, int, int, int] | None:
    """The rectangle (left, top, right, bottom) of what differs, but for the clock's text."""
    if one.size != other.size:
        return (0, 0, *one.size)
    difference = ImageChops.difference(one, other)
    clock = XFCE.clock
    difference.paste((0, 0, 0), (clock.left, 0, clock.left + clock.width, XFCE.panel.height))
    return difference.getbbox()


def prepare(viewer: Viewer, picture: Path) -> None:
    """Open a terminal on a desktop that rests, and write the picture."""
    end = time.monotonic() + _BOOT_BOUND
    while True:
        try:
            watch(viewer, XFCE, _REST, [])
            break
        except NotShownError:
            if time.monotonic() > end:
                raise
    viewer.click(*XFCE.terminal)
    viewer.wait(lambda: _terminal_is_open(viewer), _BOOT_BOUND)
    viewer.point_away()
    viewer.wait_until_still(_REST, _BOOT_BOUND)
    viewer.save(picture)


def _terminal_is_open(viewer: Viewer) -> bool:
    black = viewer.colours(TERMINAL)[0, 0, 0]
    return black > TERMINAL.width * TERMINAL.height / 2


def answer(viewer: Viewer, before: Image.Image) -> tuple[float, float]:
    """Wait until the picture is as before, press a key, and wait for its letter.

    Returns:
        The time.monotonic() of both; `inf` for what did not come.
    """
    complete = answered = math.inf
    try:
        viewer.wait(lambda: differences(viewer.picture(), before) is None)
        complete = time.monotonic()
        viewer.type(_LETTER)
        viewer.wait(lambda: differences(viewer.picture(), before) is not None)
        answered = time.monotonic()
    except NotShownError:
        pass
    return complete, answered


def main(verb: str, address: str, picture: str) -> None:
    """Use one desktop."""
    path = Path(picture)
    with connected(address, _BOOT_BOUND if verb == "prepare" else _BOUND) as viewer:
        if verb == "prepare":
            prepare(viewer, path)
            return
        with Image.open(path) as before:
            times = answer(viewer, before.convert("RGB"))
        viewer.save(path.with_name(f"seen-{path.name}"))
    print(*times, sep="\n")
    sys.exit(math.inf in times)


if __name__ == "__main__":
    main(*sys.argv[1:])
