"""The options of `boot` that give the guest a display."""

from __future__ import annotations

from dataclasses import dataclass

import click

from p2pcloop.cli.options import as_one
from p2pcloopd.guest.display.choice import DisplayChoice, parse_display, parse_geometry


def _to_display(_context: click.Context, _parameter: click.Parameter, value: str) -> DisplayChoice:
    return parse_display(value)


def _to_geometry(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> tuple[int, int]:
    return parse_geometry(value)


_OPTIONS = (
    click.option(
        "--display",
        default="none",
        show_default=True,
        callback=_to_display,
        metavar="vnc[:[ADDR:]PORT]|none",
        help="`vnc`: a screen for the guest's X programs, which any VNC viewer shows; the guest"
        " needs no X server.  [default ADDR: 127.0.0.1; PORT: a free one]",
    ),
    click.option(
        "--geometry",
        default="1280x800",
        show_default=True,
        callback=_to_geometry,
        metavar="WIDTHxHEIGHT",
        help="The size of that screen.",
    ),
)


@dataclass(frozen=True, slots=True)
class DisplayOptions:
    """The values of the options of `display_options`; `--help` explains them."""

    display: DisplayChoice
    geometry: tuple[int, int]


display_options = as_one(DisplayOptions, _OPTIONS, "screen")
"""Give a command these options, and its function a `DisplayOptions` as `screen`."""
