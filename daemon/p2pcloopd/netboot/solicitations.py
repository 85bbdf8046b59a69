"""Spares machines the wait for an IPv6 router where the LAN has none.

iPXE configures IPv4 and IPv6 at once, and goes on only when both are done or have failed
(netdev_configuration_in_progress, src/usr/ifmgmt.c). Without a router it asks six times for one, in
16 seconds. Any router advertisement ends that. Ours offers nothing: its lifetime of 0 says that
this machine is no router (RFC 4861, 6.2.3), so it changes nothing for those who take it.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from contextlib import suppress
from ipaddress import IPv6Address

import trio

from p2pcloopd.netboot.interface import Interface

_SOLICITATION, _ADVERTISEMENT = 133, 134
_FILTER = 1  # ICMPV6_FILTER, linux/icmpv6.h
_ALL_ROUTERS = "ff02::2"
_HOPS = 255
"""Of each packet of neighbour discovery: routers pass none on."""

_NO_ROUTER = struct.pack("!BBHBBHII", _ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0)
"""An advertisement without a lifetime, flags and prefixes; the kernel fills in its checksum."""

_QUESTIONS, _SECONDS = 3, 3.0
_MAX_MACHINES = 256


class Impatient:
    """Tells firmware, which has asked thrice within 3 seconds, from others.

    A router answers within half a second, and who gets an answer does not ask again. A system that
    runs waits four seconds before it does (RFC 4861, 10).
    """

    def __init__(self) -> None:
        self._asked: dict[str, deque[float]] = {}

    def asks(self, machine: str, now: float) -> bool:
        """Note that a machine asks; whether it is to be answered.

        Args:
            machine: its address.
            now: in seconds, by a clock that only goes forward.
        """
        times = self._asked.pop(machine, None) or deque(maxlen=_QUESTIONS)
        self._asked[machine] = times  # the last of them
        if len(self._asked) > _MAX_MACHINES:
            del self._asked[next(iter(self._asked))]
        times.append(now)
        return len(times) == _QUESTIONS and now - times[0] < _SECONDS


async def answer_solicitations(interface: Interface) -> None:
    """Answer machines that look for an IPv6 router in vain. Ends at once where the system has no
    IPv6 or takes none of its packets: then machines wait, and start all the same."""
    with suppress(OSError), _socket(interface) as sock:
        impatient = Impatient()
        while True:
            _, (host, _, _, scope) = await sock.recvfrom(1)
            # Only on its own link has a machine such an address, whatever the packet's way.
            if not IPv6Address(host.partition("%")[0]).is_link_local:
                continue
            if impatient.asks(host, trio.current_time()):
                with suppress(OSError):  # this machine may have no address, or that one be gone
                    await sock.sendto(_NO_ROUTER, (host, 0, 0, scope))


def _socket(interface: Interface) -> trio.socket.SocketType:
    """A socket for what machines ask routers at an interface.

    Raises:
        OSError: the system refuses.
    """
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        number = socket.if_nametoindex(interface.name)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.name.encode())
        blocked = bytearray(b"\xff" * 32)
        blocked[_SOLICITATION // 32 * 4 : _SOLICITATION // 32 * 4 + 4] = struct.pack(
            "=I", 0xFFFFFFFF & ~(1 << _SOLICITATION % 32)
        )
        sock.setsockopt(socket.IPPROTO_ICMPV6, _FILTER, bytes(blocked))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _HOPS)
        group = socket.inet_pton(socket.AF_INET6, _ALL_ROUTERS) + struct.pack("=I", number)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        return trio.socket.from_stdlib_socket(sock.dup())
