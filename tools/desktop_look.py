"""What the desktops of tools/build-image look like: a program can tell whether all is there.

A part of the picture is there if its colours are those of the painted thing: the panel's own colour
covers most of the panel, an icon has many colours, the clock is dark text on the panel.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from tools.vnc import Colour, Region

WIDTH, HEIGHT = 1280, 800
"""The size of the screen that the places below are of: boot's own."""

_PANEL_SHARE = 0.5
_ICON_COLOURS = 12
_TEXT_SHARE = 0.04, 0.6
_DARK = 3 * 110
"""Red, green and blue together, of the pixels that make dark text."""


class Screen(Protocol):
    """A picture that can be looked at: a VNC viewer's, or one that a test draws."""

    def colours(self, region: Region) -> Counter[Colour]:
        """How many pixels of a part of the picture have which colour."""


@dataclass(frozen=True, slots=True)
class Look:
    """A desktop, as it is when nothing is open.

    Attributes:
        panel: a strip along a whole edge of the screen.
        panel_colour: of its background.
        icons: one thing each: the panel's, and the desktop's own.
        clock: with its text.
        background: a part on which nothing lies.
        terminal: the icon that opens a terminal: a point of it.
    """

    panel: Region
    panel_colour: Colour
    icons: tuple[Region, ...]
    clock: Region
    background: Region
    terminal: tuple[int, int]

    def missing(self, screen: Screen) -> list[str]:
        """What of the desktop is not to be seen; empty if it is complete."""
        panel = screen.colours(self.panel)
        dark = sum(n for colour, n in screen.colours(self.clock).items() if sum(colour) < _DARK)
        text = dark / (self.clock.width * self.clock.height)
        background = screen.colours(self.background)
        seen = {
            "panel": panel[self.panel_colour] >= _PANEL_SHARE * panel.total(),
            "clock": _TEXT_SHARE[0] <= text <= _TEXT_SHARE[1],
            "background": (0, 0, 0) not in background and self.panel_colour not in background,
        }
        for icon in self.icons:
            seen[f"icon at {icon.left},{icon.top}"] = len(screen.colours(icon)) >= _ICON_COLOURS
        return [name for name, there in seen.items() if not there]


XFCE = Look(
    panel=Region(0, 0, WIDTH, 28),
    panel_colour=(246, 245, 244),
    icons=(
        Region(2, 6, 16, 16),
        Region(108, 6, 16, 16),
        Region(136, 6, 16, 16),
        Region(48, 52, 46, 48),
        Region(48, 158, 46, 48),
    ),
    clock=Region(1214, 2, 64, 24),
    background=Region(150, 100, 450, 600),
    terminal=(116, 14),
)

LIGHT = Look(
    panel=Region(0, 770, WIDTH, 30),
    panel_colour=(238, 238, 236),
    icons=(Region(4, 776, 22, 18), Region(92, 773, 24, 24)),
    clock=Region(1162, 774, 116, 22),
    background=Region(100, 50, 500, 600),
    terminal=(103, 785),
)

LOOKS = {"xfce": XFCE, "light": LIGHT}
"""By the name of the desktop."""
