"""What `--display` asks for, and the port that viewers connect to.

The port is bound before anything starts, so one that is in use is an error of the command. It stays
this guest's while the guest reboots.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from p2pcloop.errors import BusyError, GuestError, P2pcloopError, UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

LOOPBACK = "127.0.0.1"
_VNC_PORTS, _WEB_PORTS = range(5901, 5931), range(6080, 6110)
_BACKLOG = 16
_WEB_FORM = re.compile(r"web(?::(?P<port>\d{1,5}))?", re.ASCII)
_FORM = re.compile(r"vnc(?::(?:(?P<address>[\d.]+):)?(?P<port>\d{1,5}))?", re.ASCII)
_GEOMETRY = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})", re.ASCII)
_MIN_SIDE, _MAX_SIDE = 64, 16384

Kind = Literal["none", "vnc", "web", "window"]


@dataclass(frozen=True, slots=True)
class DisplayChoice:
    """A display as the user asked for it.

    Attributes:
        address: IPv4, of this machine, at which viewers connect.
        port: 0 for a free one.
    """

    kind: Kind
    address: str = LOOPBACK
    port: int = 0


def parse_display(text: str) -> DisplayChoice:
    """Read `none`, `window`, `web[:PORT]` or `vnc[:[ADDRESS:]PORT]`.

    Raises:
        UsageError: it is not of that form.
    """
    if text in ("none", "window"):
        return DisplayChoice("none" if text == "none" else "window")
    if match := _WEB_FORM.fullmatch(text):
        return DisplayChoice("web", port=_to_port(text, match["port"]))
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(
            tr(
                "--display {text!r} is none of window, vnc, vnc:PORT, vnc:ADDRESS:PORT, web,"
                " web:PORT and none",
                text=text,
            ),
            hint="for example vnc:5901; ADDRESS is IPv4",
        )
    address = match["address"] or LOOPBACK
    try:
        socket.inet_pton(socket.AF_INET, address)
    except OSError as err:
        raise UsageError(
            tr("--display {text!r} has no IPv4 address before its port", text=text)
        ) from err
    return DisplayChoice("vnc", address, _to_port(text, match["port"]))


def _to_port(text: str, port: str | None) -> int:
    if port is not None and not 0 < int(port) < 1 << 16:
        raise UsageError(
            tr("--display {text!r} has a port that is not within 1 to 65535", text=text)
        )
    return int(port or 0)


def parse_geometry(text: str) -> tuple[int, int]:
    """Read `WIDTHxHEIGHT`, in pixels.

    Raises:
        UsageError: it is not of that form, or no screen has that size.
    """
    match = _GEOMETRY.fullmatch(text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(_MIN_SIDE <= side <= _MAX_SIDE for side in sides):
        raise UsageError(
            tr("--geometry {text!r} is no size of a screen", text=text),
            hint=tr(
                "give WIDTHxHEIGHT, as 1280x800; each {min_side} to {max_side}",
                min_side=_MIN_SIDE,
                max_side=_MAX_SIDE,
            ),
        )
    return sides


@dataclass(frozen=True, slots=True)
class Listeners:
    """The open ports of a display.

    Attributes:
        vnc: viewers connect there; None if it has none.
        web: browsers do; None if it has none.
    """

    vnc: socket.socket | None = None
    web: socket.socket | None = None


@contextmanager
def bound_display(choice: DisplayChoice) -> Iterator[Listeners]:
    """Open the ports of a display, and close them at the end.

    Raises:
        BusyError: one is in use.
        UsageError: one needs root, or this machine does not have its address.
    """
    if choice.kind == "vnc":
        with _listener(choice, _VNC_PORTS) as vnc:
            yield Listeners(vnc)
    elif choice.kind == "web":
        inner = DisplayChoice("vnc")
        with _listener(choice, _WEB_PORTS) as web, _listener(inner, _VNC_PORTS) as vnc:
            yield Listeners(vnc, web)
    else:
        yield Listeners()


def _listener(choice: DisplayChoice, usual: Iterable[int]) -> socket.socket:
    ports = (choice.port,) if choice.port else (*usual, 0)
    for port in ports:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((choice.address, port))
            sock.listen(_BACKLOG)
        except OSError as err:
            sock.close()
            if err.errno != errno.EADDRINUSE or port == ports[-1]:
                raise _refused(choice, err) from err
        else:
            return sock
    raise AssertionError("the last port was refused or opened")


def _refused(choice: DisplayChoice, err: OSError) -> P2pcloopError:
    what = tr(
        "the display cannot have port {port} of {address}", port=choice.port, address=choice.address
    )
    if err.errno == errno.EADDRINUSE:
        return BusyError(
            tr("{what}: it is in use", what=what),
            hint="leave the port out for a free one; `ss -lntp` lists who has it",
        )
    if err.errno == errno.EACCES:
        return UsageError(tr("{what}: only root may open ports below 1024", what=what))
    if err.errno == errno.EADDRNOTAVAIL:
        return UsageError(tr("{what}: this machine does not have that address", what=what))
    return GuestError(tr("{what}: {why}", what=what, why=os.strerror(err.errno or 0)))
