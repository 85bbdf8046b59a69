"""A desktop on a guest's display: complete, and with a terminal that answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.programs import Guest, Node, Nodes
from tests.support.stock_images import desktop_image
from tests.support.waiting import BOUND
from tests.support.x_screen import desktop
from tools.desktop_look import HEIGHT, LOOKS, WIDTH
from tools.desktop_look import Screen as Picture
from tools.vnc import Colour, Viewer

pytestmark = pytest.mark.e2e

STILL = 2.0
"""Seconds without a change after which a picture is a still one."""

PATIENCE = 15.0
"""Seconds after which a line that a terminal has not answered is typed again."""

BLACK = (0, 0, 0)
ANSWER = (0, 215, 135)
"""Colour 42 of the terminal's 256."""

TERMINAL = 100_000
"""Pixels of the terminal's window, at least."""

PROGRAM = {"light": "jwm", "xfce": "xfce4-panel"}
"""Of a desktop; the image's user runs it."""

MOST_FILES, MOST_CLOOP = 400_000_000, 150_000_000
"""Bytes of a desktop's files, and of its cloop."""


class Screen(Picture, Protocol):
    """A screen with a mouse and a keyboard."""

    def count(self, colour: Colour) -> int: ...
    def wait(self, condition: Callable[[], bool]) -> None: ...
    def wait_until_still(self, seconds: float) -> None: ...
    def click(self, x: int, y: int) -> None: ...
    def type(self, text: str) -> None: ...


class Typed:
    """A line that is typed, and typed again where it is not answered: on a busy machine the window
    may get its keys later than it is seen."""

    def __init__(self, screen: Screen, line: str) -> None:
        self._screen = screen
        self._line = line
        self._typed_at = -math.inf

    def is_answered(self) -> bool:
        if time.monotonic() - self._typed_at > PATIENCE:
            self._screen.type(self._line)
            self._typed_at = time.monotonic()
        return self._screen.count(ANSWER) > TERMINAL


@contextmanager
def on_vnc(node: Node, image: Path) -> Iterator[Screen]:
    """A guest whose display a VNC viewer shows."""
    with booted(node, image, "vnc"):
        (told,) = (each["display"] for each in node.json("ps")["guests"])
        with Viewer(told["address"], told["password"]) as viewer:
            yield viewer


@contextmanager
def in_window(node: Node, image: Path) -> Iterator[Screen]:
    """A guest whose display fills the screen of a user's desktop (Xvfb)."""
    with desktop(node.root.parent, WIDTH, HEIGHT) as users:
        node.environment |= users.environment
        with booted(node, image, "window", "--geometry", f"{WIDTH}x{HEIGHT}"):
            yield users


@contextmanager
def booted(node: Node, image: Path, *display: str) -> Iterator[None]:
    """A guest g1 that has shown its login."""
    words = ("--mem", "256M", "--name", "g1", "--display", *display)
    with Guest(node, image, *words) as guest:
        guest.expect("login: ", BOUND)
        yield
        guest.kill()


@pytest.mark.parametrize(
    ("kind", "show"),
    [("light", on_vnc), ("light", in_window), ("xfce", in_window)],
    ids=["light on VNC", "light in a window", "xfce in a window"],
)
def test_a_desktop_is_complete_and_its_terminal_answers(
    nodes: Nodes, kind: str, show: Callable[[Node, Path], AbstractContextManager[Screen]]
) -> None:
    node, image, look = nodes.make(), desktop_image(kind), LOOKS[kind]
    assert image.stat().st_size < MOST_CLOOP
    with show(node, image) as screen:
        screen.wait(lambda: not look.missing(screen))
        screen.wait_until_still(STILL)
        assert look.missing(screen) == []

        screen.click(*look.terminal)
        screen.wait(lambda: screen.count(BLACK) > TERMINAL)
        screen.wait_until_still(STILL)  # its shell has its prompt
        assert not screen.count(ANSWER)
        screen.wait(Typed(screen, "printf '\\33[48;5;%dm\\33[2J' $((6*7))\n").is_answered)

        in_guest = ("exec", "g1", "--")
        assert node.run(*in_guest, "pgrep", "-u", "knoppix", "-x", PROGRAM[kind]).out
        used = node.run(*in_guest, "df", "--block-size=1", "--output=used", "/").out
        assert int(used.split()[-1]) < MOST_FILES
        # Programs that did not trust the cache would read all fonts.
        fonts = node.run(*in_guest, "fc-cache", "--system-only", "--verbose").out
        assert "truetype/dejavu: skipping, existing cache is valid" in fonts
        assert ": caching" not in fonts
