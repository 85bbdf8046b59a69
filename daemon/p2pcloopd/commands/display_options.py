"""The options of `boot` that give the guest a display."""

from __future__ import annotations

import click

from p2pcloop.cli.options import as_one
from p2pcloop.errors import UsageError
from p2pcloop.frozen import dataclass
from p2pcloopd.guest.display.choice import DisplayChoice, parse_display, parse_geometry
from p2pcloopd.guest.system.local_settings import LocalSettings, given_settings, host_settings


def _to_display(_context: click.Context, _parameter: click.Parameter, value: str) -> DisplayChoice:
    return parse_display(value)


def _to_geometry(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    return None if value is None else parse_geometry(value)


_OPTIONS = (
    click.option(
        "--display",
        default="none",
        show_default=True,
        callback=_to_display,
        metavar="window|vnc[:[ADDR:]PORT]|web[:PORT]|none",
        help="A screen for the guest's X programs: a window of your desktop, or one that any VNC"
        " viewer shows, or a browser (`web`); the image needs no X server."
        "  [default ADDR: 127.0.0.1; PORT: a free one]",
    ),
    click.option(
        "--geometry",
        callback=_to_geometry,
        metavar="WIDTHxHEIGHT",
        help="The size of that screen.  [default: 1280x800; of a window, most of your screen]",
    ),
    click.option(
        "--session",
        metavar="COMMAND",
        help="Run COMMAND on that screen, by the image's shell: `startxfce4`, `xterm`.",
    ),
    click.option(
        "--session-user",
        metavar="NAME",
        help="Who runs it.  [default: the image's first ordinary user, else root]",
    ),
    click.option(
        "--locale",
        metavar="LOCALE",
        help="The guest's language, as de_DE.UTF-8; C leaves it to the image."
        "  [default: with a --display, yours]",
    ),
    click.option(
        "--keyboard",
        metavar="LAYOUT",
        help="The guest's keyboard layout, as de.  [default: with a --display, this machine's]",
    ),
)


@dataclass(frozen=True, slots=True)
class DisplayOptions:
    """The values of the options of `display_options`; `--help` explains them."""

    display: DisplayChoice
    geometry: tuple[int, int] | None
    session: str | None
    session_user: str | None
    locale: str | None
    keyboard: str | None

    @property
    def settings(self) -> LocalSettings:
        """What the guest is told of language, keyboard and time zone."""
        given = given_settings(self.locale, self.keyboard)
        if self.display.kind == "none":
            return given
        host = host_settings()
        return LocalSettings(
            host.locale if self.locale is None else given.locale,
            given.keyboard or host.keyboard,
            host.zone,
        )

    def check(self) -> None:
        """Refuse options that do not go together, or not with this machine.

        Raises:
            UsageError: there is a session or a size without a display, or a session's user
                without a session; or a setting is none.
            GuestError: the window needs the user's display, which cannot be used.
        """
        given_settings(self.locale, self.keyboard)
        if self.geometry is not None and self.display.kind == "none":
            raise UsageError("--geometry is the size of a screen", hint="add a --display")
        if self.session is not None and self.display.kind == "none":
            raise UsageError(
                "--session needs a screen", hint="add --display vnc, or --display window"
            )
        if self.session_user is not None and self.session is None:
            raise UsageError("--session-user needs a --session COMMAND")
        if self.session is not None and not self.session.strip():
            raise UsageError("--session needs a command, as `xterm`")
        if self.display.kind == "window":
            # Before anything is started or made.
            from p2pcloopd.guest.display import host_display  # noqa: PLC0415  not for most boots

            host_display.find_host_display()


display_options = as_one(DisplayOptions, _OPTIONS, "screen")
"""Give a command these options, and its function a `DisplayOptions` as `screen`."""
