"""A desktop on a guest's display: complete, and with a terminal that answers."""

from __future__ import annotations

import pytest

from tests.support.programs import Guest, Nodes
from tests.support.stock_images import desktop_image
from tests.support.waiting import BOUND
from tools.desktop_look import LIGHT
from tools.vnc import Viewer

pytestmark = pytest.mark.e2e

STILL = 2.0
"""Seconds without a change after which a picture is a still one."""

BLACK = (0, 0, 0)
ANSWER = (0, 215, 135)
"""Colour 42 of the terminal's 256."""

TERMINAL = 100_000
"""Pixels of the terminal's window, at least."""


def test_a_desktop_is_complete_and_its_terminal_answers(nodes: Nodes) -> None:
    node = nodes.make()
    with Guest(
        node, desktop_image("light"), "--mem", "256M", "--display", "vnc", "--name", "g1"
    ) as guest:
        guest.expect("login: ", BOUND)
        (told,) = (each["display"] for each in node.json("ps")["guests"])
        with Viewer(told["address"], told["password"]) as viewer:
            viewer.wait(lambda: not LIGHT.missing(viewer))
            viewer.wait_until_still(STILL)
            assert LIGHT.missing(viewer) == []

            viewer.click(*LIGHT.terminal)
            viewer.wait(lambda: viewer.count(BLACK) > TERMINAL)
            viewer.wait_until_still(STILL)  # its shell has its prompt
            assert not viewer.count(ANSWER)
            viewer.type("printf '\\33[48;5;%dm\\33[2J' $((6*7))\n")
            viewer.wait(lambda: viewer.count(ANSWER) > TERMINAL)

        in_guest = ("exec", "g1", "--")
        assert node.run(*in_guest, "pgrep", "-u", "knoppix", "-x", "jwm").out
        # Programs that did not trust the cache would read all fonts.
        fonts = node.run(*in_guest, "fc-cache", "--system-only", "--verbose").out
        assert "truetype/dejavu: skipping, existing cache is valid" in fonts
        assert ": caching" not in fonts
        guest.kill()
