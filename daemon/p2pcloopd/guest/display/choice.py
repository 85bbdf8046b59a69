"""What `--display` asks for, and the port that viewers connect to.

The port is bound before anything starts, so one that is in use is an error of the command. It stays
this guest's while the guest reboots.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from p2pcloop.errors import BusyError, GuestError, P2pcloopError, UsageError

LOOPBACK = "127.0.0.1"
_USUAL_PORTS = range(5901, 5931)
_BACKLOG = 16
_FORM = re.compile(r"vnc(?::(?:(?P<address>[\d.]+):)?(?P<port>\d{1,5}))?", re.ASCII)
_GEOMETRY = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})", re.ASCII)
_MIN_SIDE, _MAX_SIDE = 64, 16384

Kind = Literal["none", "vnc", "window"]


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

    @property
    def is_open_to_others(self) -> bool:
        """Whether viewers on other machines may connect."""
        return not self.address.startswith("127.")


def parse_display(text: str) -> DisplayChoice:
    """Read `none`, `window` or `vnc[:[ADDRESS:]PORT]`.

    Raises:
        UsageError: it is not of that form.
    """
    if text == "none":
        return DisplayChoice("none")
    if text == "window":
        return DisplayChoice("window")
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--display {text!r} is none of vnc, vnc:PORT, vnc:ADDRESS:PORT, window, none",
            hint="for example vnc:5901; ADDRESS is IPv4",
        )
    address = match["address"] or LOOPBACK
    try:
        socket.inet_pton(socket.AF_INET, address)
    except OSError as err:
        raise UsageError(f"--display {text!r} has no IPv4 address before its port") from err
    port = int(match["port"] or 0)
    if match["port"] and not 0 < port < 1 << 16:
        raise UsageError(f"--display {text!r} has a port that is not within 1 to 65535")
    return DisplayChoice("vnc", address, port)


def parse_geometry(text: str) -> tuple[int, int]:
    """Read `WIDTHxHEIGHT`, in pixels.

    Raises:
        UsageError: it is not of that form, or no screen has that size.
    """
    match = _GEOMETRY.fullmatch(text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(_MIN_SIDE <= side <= _MAX_SIDE for side in sides):
        raise UsageError(
            f"--geometry {text!r} is no size of a screen",
            hint=f"give WIDTHxHEIGHT, as 1280x800; each {_MIN_SIDE} to {_MAX_SIDE}",
        )
    return sides


@contextmanager
def bound_display(choice: DisplayChoice) -> Iterator[socket.socket | None]:
    """Open the port of a display, and close it at the end; None if it has no port.

    Raises:
        BusyError: it is in use.
        UsageError: it needs root, or this machine does not have its address.
    """
    if choice.kind != "vnc":
        yield None
        return
    with _listener(choice) as listener:
        yield listener


def _listener(choice: DisplayChoice) -> socket.socket:
    ports = (choice.port,) if choice.port else (*_USUAL_PORTS, 0)
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
    what = f"the display cannot have port {choice.port} of {choice.address}"
    if err.errno == errno.EADDRINUSE:
        return BusyError(
            f"{what}: it is in use",
            hint="leave the port out for a free one; `ss -lntp` lists who has it",
        )
    if err.errno == errno.EACCES:
        return UsageError(f"{what}: only root may open ports below 1024")
    if err.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"{what}: this machine does not have that address")
    return GuestError(f"{what}: {os.strerror(err.errno or 0)}")
