"""The X servers that can be a guest's: what runs, with which options, and what it needs to see."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from pathlib import Path

from p2pcloop.errors import NeedsPackageError
from p2pcloop.frozen import dataclass
from p2pcloopd.guest.display.access import authority_file, password_file
from p2pcloopd.guest.display.spec import Display
from p2pcloopd.programs import find_program

_AUTHORITY, _PASSWORD = Path("/run/authority"), Path("/run/password")
_OUTER_AUTHORITY = Path("/run/outer-authority")

OUTER_SOCKET = Path("/tmp/.X11-unix/X1")  # noqa: S108  inside the sandbox
"""Where a server that shows a window finds the user's display."""

_COMMON_OPTIONS = (
    # With GLX, programs of the guest map a whole compiler (libLLVM) to draw in software. Memory
    # cannot be shared with a guest.
    *("-extension", "GLX", "-extension", "MIT-SHM"),
    *("-noreset", "-s", "0", "-fp", "built-ins", "-auth", str(_AUTHORITY)),
    *("-listen", "tcp", "-nolisten", "unix", "-nolisten", "local", "-nolisten", "inet6"),
)
"""What every server has. It would end, or begin anew, when its last client goes; `-s 0` leaves the
screen on."""


@dataclass(frozen=True, slots=True)
class XServer:
    """A program that can be the X server of a guest.

    Attributes:
        program: its file.
        options: of its command line.
        secrets: files that it needs, by their places in the sandbox.
        environment: its variables.
    """

    program: Path
    options: tuple[str, ...]
    secrets: Mapping[Path, bytes]
    environment: Mapping[str, str] = field(default_factory=dict)


def find_server(display: Display) -> XServer:
    """Return the server of a display.

    Raises:
        NeedsPackageError: it is not installed.
    """
    return _vnc(display) if display.host is None else _window(display)


def _vnc(display: Display) -> XServer:
    return XServer(
        find_program("Xtigervnc", "tigervnc-standalone-server"),
        (
            *(*_COMMON_OPTIONS, "-geometry", display.geometry, "-depth", "24"),
            # With -inetd its standard input is a socket that listens (wire.py).
            *("-inetd", "-desktop", display.title, "-AlwaysShared"),
            *("-SecurityTypes", "TLSVnc,VncAuth", "-PasswordFile", str(_PASSWORD)),
            # A clipboard may hold passwords: neither side gets the other's.
            *("-AcceptCutText=0", "-SendCutText=0"),
        ),
        {
            _AUTHORITY: authority_file(display.cookie),
            _PASSWORD: password_file(display.password),
        },
    )


def _window(display: Display) -> XServer:
    """Xephyr, which knows RANDR and RENDER; or else Xnest."""
    assert display.host is not None
    secrets = {_AUTHORITY: authority_file(display.cookie)}
    environment = {"DISPLAY": f":{OUTER_SOCKET.name.removeprefix('X')}"}
    if display.host.cookie is not None:
        secrets[_OUTER_AUTHORITY] = authority_file(display.host.cookie)
        environment["XAUTHORITY"] = str(_OUTER_AUTHORITY)
    program = _xephyr_or_xnest()
    options: tuple[str, ...] = ("-screen", display.geometry, "-title", display.title, "-resizeable")
    if program.name == "Xnest":
        options = ("-geometry", display.geometry, "-name", display.title)
    return XServer(program, (*_COMMON_OPTIONS, *options), secrets, environment)


def _xephyr_or_xnest() -> Path:
    try:
        return find_program("Xephyr", "xserver-xephyr")
    except NeedsPackageError:
        with suppress(NeedsPackageError):
            return find_program("Xnest", "xnest")
        raise
