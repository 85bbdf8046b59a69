"""What a desktop's picture must show, how a viewer waits for it, and the bars of its boots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from bench.links.boots import LinkRun
from bench.links.control import Control
from bench.links.desktop import LOCAL, PLAIN, PROFILED, bars, parse
from bench.links.link import Link
from bench.links.sample import Sample
from bench.links.watch_desktop import watch
from tools.desktop_look import HEIGHT, LIGHT, LOOKS, WIDTH, XFCE, Look
from tools.vnc import Colour, Region, Viewer

BLUE: Colour = (20, 33, 50)


class Painted(Viewer):
    """A viewer of a picture that was painted here; nothing is at its other end."""

    def __init__(self, pictures: Iterator[bytearray]) -> None:
        self.width, self.height = WIDTH, HEIGHT
        self._pictures = pictures
        self._picture = next(pictures)
        self.changed = 0.0

    def wait_until_still(self, seconds: float, limit: float = 0) -> None:
        assert (seconds, limit) == (2.0, 0)

    def wait_for_change(self) -> None:
        self._picture = next(self._pictures)
        self.changed += 1


def fill(picture: bytearray, region: Region, *colours: Colour) -> None:
    """Paint a region with columns of these colours."""
    line = b"".join(bytes([*colours[x % len(colours)], 0]) for x in range(region.width))
    for row in range(region.top, region.top + region.height):
        start = 4 * (row * WIDTH + region.left)
        picture[start : start + len(line)] = line


def painted(look: Look, *, without: str = "") -> bytearray:
    """A desktop as it should be, apart from one thing."""
    picture = bytearray(4 * WIDTH * HEIGHT)
    if without != "background":
        fill(picture, Region(0, 0, WIDTH, HEIGHT), BLUE)
    if without != "panel":
        fill(picture, look.panel, look.panel_colour)
    if without != "clock":
        fill(picture, look.clock, (0, 0, 0), *3 * [look.panel_colour])
    for number, icon in enumerate(look.icons):
        if without != f"icon {number}":
            fill(picture, icon, *((16 * step, 100, 200) for step in range(15)))
    return picture


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_each_part_of_a_desktop_is_missed(look: Look) -> None:
    assert look.missing(Painted(iter([painted(look)]))) == []
    assert look.missing(Painted(iter([painted(look, without="background")]))) == ["background"]
    assert "panel" in look.missing(Painted(iter([painted(look, without="panel")])))
    assert look.missing(Painted(iter([painted(look, without="clock")]))) == ["clock"]
    for number, icon in enumerate(look.icons):
        seen = look.missing(Painted(iter([painted(look, without=f"icon {number}")])))
        assert seen == [f"icon at {icon.left},{icon.top}"]
    black = bytearray(4 * WIDTH * HEIGHT)
    assert len(look.missing(Painted(iter([black])))) == 3 + len(look.icons)
    other = LIGHT if look is XFCE else XFCE
    assert look.missing(Painted(iter([painted(other)])))


def test_colours_are_those_of_the_region_alone() -> None:
    picture = painted(LIGHT)
    fill(picture, Region(10, 10, 4, 3), (1, 2, 3), (4, 5, 6))
    viewer = Painted(iter([picture]))
    assert viewer.colours(Region(10, 10, 4, 3)) == Counter({(1, 2, 3): 6, (4, 5, 6): 6})
    assert viewer.colours(Region(9, 9, 6, 5))[BLUE] == 30 - 12
    assert viewer.count((1, 2, 3)) == 6


def test_a_still_picture_that_is_not_complete_is_waited_over() -> None:
    pictures = [bytearray(4 * WIDTH * HEIGHT), painted(XFCE, without="clock"), painted(XFCE)]
    seen: list[str] = []
    watch(Painted(iter(pictures)), XFCE, 2.0, seen)
    assert [text.startswith("still without") for text in seen] == [True, True]
    assert seen[1] == "still without clock"


def test_each_line_has_its_bars() -> None:
    def run(rate: float, seconds: float, received: int) -> LinkRun:
        samples = [Sample(seconds, False, received, 0)]
        every = {LOCAL: samples, PLAIN: samples, PROFILED: samples}
        return LinkRun(Link(rate), Control(1.0, 0.001), every)

    slow = bars(run(613e3, 20.0, 12_900_000))
    assert [bar.reached for bar in slow] == [False, True, True, True]
    fast = bars(run(8748e3, 9.9, 13_100_000))
    assert [bar.reached for bar in fast] == [True, True, True, False]
    assert [bar.limit for bar in bars(run(1e6, 1, 1))] == [10.0, None, None, 13e6]


def test_the_image_is_a_desktop() -> None:
    assert parse([]).image == ("--desktop",)
    assert parse(["--light"]).image == ("--desktop", "light")
    with pytest.raises(SystemExit):
        parse(["--tiny"])
