"""Ports of this machine that a guest may connect to (`--open`).

All of this machine is closed to guests (frame_filter.py). A user opens single ports by naming them.
Those of 127.0.0.1 the guest finds at its gateway, 10.0.2.2; those of other addresses at these.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network

from p2pcloop.errors import UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.guest.network import frame_filter
from p2pcloopd.guest.network.frame_filter import NEVER
from p2pcloopd.guest.system.addresses import HOST_ADDRESS, NAMESERVER_ADDRESS, WIRE_NETWORK

LOOPBACK = "127.0.0.1"
_FORM = re.compile(r"(?:(?P<address>[\d.]+):)?(?P<port>\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class OpenedPort:
    """A TCP port of this machine that is open to a guest.

    Attributes:
        address: IPv4, of this machine.
        port: from 1.
    """

    address: str
    port: int

    @property
    def place(self) -> tuple[str, int]:
        """Where the guest finds it: its address and port there."""
        return (HOST_ADDRESS if self.address == LOOPBACK else self.address), self.port

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def parse_opened(text: str) -> OpenedPort:
    """Read `[ADDRESS:]PORT`; the address is 127.0.0.1 if it is not given.

    Raises:
        UsageError: it is not of that form, or this machine does not have the address.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise _bad(text, tr("is not of the form [ADDRESS:]PORT, with an IPv4 address"))
    address, port = match["address"] or LOOPBACK, int(match["port"])
    if not 0 < port < 1 << 16:
        raise _bad(text, tr("has a port that is not within 1 to 65535"))
    if address != LOOPBACK:
        _check_address(text, address)
    return OpenedPort(address, port)


def check_opened(opened: Sequence[OpenedPort]) -> None:
    """Refuse more ports than the kernel's filter can hold, which is told by trying.

    Raises:
        GuestError: there are more.
    """
    from p2pcloopd.guest.network.own_addresses import own_networks  # noqa: PLC0415  loads trio

    guest, helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with guest, helper:
        own = own_networks()
        for _ in range(2):  # when addresses change, the next filter is there beside the first
            close_off(helper, opened, own)


def close_off(
    helper_end: socket.socket, opened: Sequence[OpenedPort], own: Iterable[IPv4Network]
) -> None:
    """Keep a guest away from all of this machine but these ports.

    Args:
        helper_end: of the guest's wire.
        opened: the guest can connect to them.
        own: this machine's networks.

    Raises:
        GuestError: as for `frame_filter.install`.
    """
    on_loopback = any(port.address == LOOPBACK for port in opened)
    frame_filter.install(
        *(helper_end, NAMESERVER_ADDRESS, own),
        alias=HOST_ADDRESS if on_loopback else "",
        opened=[port.place for port in opened],
    )


def _check_address(text: str, address: str) -> None:
    try:
        socket.inet_pton(socket.AF_INET, address)
        closed = any(IPv4Address(address) in network for network in (*NEVER, WIRE_NETWORK))
    except (OSError, ValueError) as err:
        raise _bad(text, tr("has no IPv4 address before its port")) from err
    if closed:
        raise _bad(text, tr("has an address that no guest can connect to"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as err:
            raise _bad(text, tr("has an address that this machine does not have")) from err


def _bad(text: str, why: str) -> UsageError:
    return UsageError(
        tr("--open {text!r} {why}", text=text, why=why), hint="for example 3128, or 192.168.1.2:80"
    )
