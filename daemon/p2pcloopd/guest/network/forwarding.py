"""Ports of this machine that lead into a guest (`--port`).

libslirp can forward ports, but its helper has no option for it: slirp_ports.c, which is loaded into
the helper, adds them. The sockets are bound here, before anything starts: so a port that is in use
is an error of the command, root may have ports below 1024 although the helper may not, and the
ports stay this guest's while it reboots.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

from p2pcloop.errors import BusyError, GuestError, P2pcloopError, UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

MOST = 32
"""As many as slirp_ports.c has places for."""

_BACKLOG = 128
_LOOPBACK = "127.0.0.1"
_FORM = re.compile(
    r"(?:(?P<address>[^:]+):)?(?P<port>\d{1,5}):(?P<guest>\d{1,5})(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ForwardedPort:
    """A port of this machine that leads to a port of the guest.

    Attributes:
        address: IPv4, of this machine, at which the port is open; 0.0.0.0 is all of them.
        port: of this machine, from 1.
        guest_port: from 1.
    """

    address: str
    port: int
    guest_port: int
    protocol: Literal["tcp", "udp"]

    @property
    def is_open_to_others(self) -> bool:
        """Whether other machines may reach it."""
        return not self.address.startswith("127.")

    @property
    def option(self) -> str:
        """The port as `--port` takes it."""
        return f"{self.address}:{self.port}:{self.guest_port}/{self.protocol}"

    def __str__(self) -> str:
        return f"{self.address}:{self.port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class BoundPort:
    """A forwarded port that is open: its socket listens (tcp) or is bound (udp)."""

    port: ForwardedPort
    sock: socket.socket

    @property
    def word(self) -> str:
        """What slirp_ports.c is given."""
        return f"{self.sock.fileno()}:{self.port.protocol}:{self.port.guest_port}"


def parse_port(text: str) -> ForwardedPort:
    """Read `[ADDRESS:]PORT:GUESTPORT[/tcp|/udp]`; the address is 127.0.0.1 if it is not given.

    Raises:
        UsageError: it is not of that form.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise _bad(
            text, tr("is not of the form [ADDRESS:]PORT:GUESTPORT[/udp], with an IPv4 address")
        )
    address = match["address"] or _LOOPBACK
    try:
        socket.inet_pton(socket.AF_INET, address)
    except OSError as err:
        raise _bad(text, tr("has no IPv4 address before its ports")) from err
    port, guest_port = int(match["port"]), int(match["guest"])
    if not (0 < port < 1 << 16 and 0 < guest_port < 1 << 16):
        raise _bad(text, tr("has a port that is not within 1 to 65535"))
    return ForwardedPort(address, port, guest_port, "udp" if match["protocol"] == "udp" else "tcp")


def _bad(text: str, why: str) -> UsageError:
    return UsageError(
        tr("--port {text!r} {why}", text=text, why=why),
        hint="for example 2222:22, or 0.0.0.0:53:53/udp",
    )


@contextmanager
def bound_ports(ports: Iterable[ForwardedPort]) -> Iterator[tuple[BoundPort, ...]]:
    """Open ports, all or none, and close them at the end.

    Raises:
        BusyError: one is in use.
        UsageError: one needs root, or this machine does not have its address; or there are more
            than `MOST`.
    """
    wanted = tuple(ports)
    places = list(map(str, wanted))
    for place in places:
        if places.count(place) > 1:
            raise UsageError(
                tr("port {place} is given twice", place=place), hint="it can lead to one port only"
            )
    if len(wanted) > MOST:
        raise UsageError(tr("a guest can have at most {most} forwarded ports", most=MOST))
    with ExitStack() as stack:
        yield tuple(BoundPort(port, stack.enter_context(_open(port))) for port in wanted)


def _open(port: ForwardedPort) -> socket.socket:
    place = (port.address, port.port)
    is_tcp = port.protocol == "tcp"
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM)
    try:
        if is_tcp:
            # Connections of an earlier guest that still time out do not count.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        if is_tcp:
            sock.listen(_BACKLOG)
        # The helper waits for all of its sockets at once, and must not wait for one.
        sock.setblocking(False)
    except OSError as err:
        sock.close()
        raise _refused(port, err) from err
    return sock


def _refused(port: ForwardedPort, err: OSError) -> P2pcloopError:
    what = tr(
        "port {port} of {address} ({protocol}) cannot lead into the guest",
        port=port.port,
        address=port.address,
        protocol=port.protocol,
    )
    if err.errno == errno.EADDRINUSE:
        return BusyError(
            tr("{what}: it is in use", what=what),
            hint=tr(
                "choose another one: --port {port}; `ss -lntup` lists who has it",
                port=_free_example(port),
            ),
        )
    if err.errno == errno.EACCES:
        return UsageError(tr("{what}: only root may open ports below 1024", what=what))
    if err.errno == errno.EADDRNOTAVAIL:
        return UsageError(tr("{what}: this machine does not have that address", what=what))
    return GuestError(tr("{what}: {why}", what=what, why=os.strerror(err.errno or 0)))


def _free_example(port: ForwardedPort) -> str:
    other = port.port + 1 if port.port < 65535 else 1024
    return f"{other}:{port.guest_port}" + ("/udp" if port.protocol == "udp" else "")
