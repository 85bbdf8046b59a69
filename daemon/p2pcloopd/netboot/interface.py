"""The interface of this machine at which others start, and what of it they need to know."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import ifaddr

from p2pcloop.errors import BusyError, GuestError, NotHereError, UsageError
from p2pcloop.words import tr
from p2pcloopd.guest.network.taps import is_up

_GET_HARDWARE_ADDRESS = 0x8927  # linux/sockios.h: SIOCGIFHWADDR
_ETHERNET = 1  # linux/if_arp.h
_DHCP_SERVER = 67


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface with an address.

    Attributes:
        mac: its hardware address.
        own: its address, with the network.
    """

    name: str
    mac: bytes
    own: IPv4Interface

    @property
    def address(self) -> str:
        """Its address, as text."""
        return str(self.own.ip)

    @property
    def network(self) -> IPv4Network:
        """The network behind it."""
        return self.own.network


def check_root() -> None:
    """Refuse a user who may not answer machines that start.

    Raises:
        UsageError: this is not root.
    """
    if os.geteuid() != 0:
        raise UsageError(
            "only root may answer machines that start over the network (DHCP and TFTP have ports"
            " below 1024)",
            hint="run it as root (sudo): root's node gets the image from yours by its link",
        )


def find_interface(name: str) -> Interface:
    """Look at an interface.

    Raises:
        NotHereError: there is none of this name.
        GuestError: it is down, is not Ethernet, or has no IPv4 address.
    """
    there = [other for _, other in socket.if_nameindex()]
    if name not in there:
        raise NotHereError(
            tr("this machine has no interface {name}", name=name),
            hint=tr("it has {there}", there=", ".join(sorted(there))),
        )
    if not is_up(name):
        raise GuestError(
            tr("the interface {name} is down", name=name),
            hint=tr("`ip link set {name} up`, as root", name=name),
        )
    mac = _hardware_address(name)
    if mac is None:
        raise GuestError(
            tr("the interface {name} is not Ethernet: no machine can start there", name=name),
            hint=tr("this machine has {there}", there=", ".join(sorted(there))),
        )
    addresses = [
        IPv4Interface((ip.ip, ip.network_prefix))
        for adapter in ifaddr.get_adapters()
        if adapter.nice_name == name
        for ip in adapter.ips
        if isinstance(ip.ip, str)
    ]
    if not addresses:
        raise GuestError(
            tr(
                "the interface {name} has no IPv4 address, by which machines could reach this one",
                name=name,
            ),
            hint=tr("give it one: `ip address add 192.168.77.1/24 dev {name}`, as root", name=name),
        )
    return Interface(name, mac, addresses[0])


def _hardware_address(name: str) -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _GET_HARDWARE_ADDRESS, struct.pack("16s24x", name.encode()))
    (kind,) = struct.unpack_from("=H", answer, 16)
    return answer[18:24] if kind == _ETHERNET else None


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses that a DHCP server gives away, the first and the last."""

    first: IPv4Address
    last: IPv4Address


def parse_range(text: str, interface: Interface) -> Range:
    """Read `FIRST,LAST`, addresses behind an interface.

    Raises:
        UsageError: it is no range, lies outside the interface's network, or holds its own address.
    """
    network = interface.network
    hint = tr(
        "give two addresses of {network} without {address}: FIRST,LAST",
        network=network,
        address=interface.address,
    )
    try:
        first, last = map(IPv4Address, text.split(","))
    except ValueError as err:
        raise UsageError(tr("{text!r} is no range of addresses", text=text), hint=hint) from err
    if not first <= last:
        raise UsageError(tr("the range {text} ends before it begins", text=text), hint=hint)
    edges = {network.network_address, network.broadcast_address}
    if first not in network or last not in network or edges & {first, last}:
        raise UsageError(
            tr("the range {text} lies outside {network}", text=text, network=network), hint=hint
        )
    if first <= interface.own.ip <= last:
        raise UsageError(
            tr(
                "the range {text} holds {address}, the address of {interface}",
                text=text,
                address=interface.address,
                interface=interface.name,
            ),
            hint=hint,
        )
    return Range(first, last)


def is_port_taken(interface: Interface) -> bool:
    """Whether a program of this machine answers DHCP at an interface.

    Raises:
        GuestError: the system does not tell.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # A server of another interface is bound to that one, and does not count.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.name.encode())
        try:
            sock.bind(("", _DHCP_SERVER))
        except OSError as err:
            if err.errno == errno.EADDRINUSE:
                return True
            raise GuestError(
                tr(
                    "port {dhcp_server} cannot be used: {why}",
                    dhcp_server=_DHCP_SERVER,
                    why=err.strerror,
                )
            ) from err
    return False


def check_no_own_server(interface: Interface) -> None:
    """Refuse to be a DHCP server where a program of this machine is one.

    Raises:
        BusyError: one listens at the interface already.
    """
    if is_port_taken(interface):
        raise BusyError(
            tr(
                "a DHCP server of this machine answers at {interface} already",
                interface=interface.name,
            ),
            hint="`--dhcp proxy` works beside it; `ss -ulpn sport = :67` names it",
        )
