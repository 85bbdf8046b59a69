"""This machine's own addresses, and events at their changes, from the kernel itself.

The source is the local routing table: it decides whether a packet stays on this machine, and knows
whole networks that belong to it besides single addresses. Over netlink (rtnetlink(7)) a change is
an event; getifaddrs and the libraries on top of it (ifaddr) tell neither networks nor changes.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network

import trio

# linux/rtnetlink.h, linux/netlink.h
_IPV4_ROUTES = 0x40
_DUMP_ROUTES, _A_ROUTE, _ERROR, _DONE = 26, 24, 2, 3
_REQUEST, _DUMP = 0x1, 0x300
_LOCAL_TABLE, _DESTINATION, _TABLE = 255, 1, 15
_OWN_TYPES = (2, 3, 4)  # local, broadcast, anycast
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_MAX_MESSAGE = 1 << 16


def own_networks() -> list[IPv4Network]:
    """Return the IPv4 networks that are delivered to this machine itself, broadcasts included.

    Raises:
        OSError: the kernel does not tell.
    """
    return list(_networks(_own_network))


def routed_networks() -> list[IPv4Network]:
    """Return the IPv4 networks that this machine has a route to, other than the default one.

    Raises:
        OSError: the kernel does not tell.
    """
    return list(_networks(_routed_network))


def _networks(select: Callable[[bytes], IPv4Network | None]) -> Iterator[IPv4Network]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        body = _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        size = _HEADER.size + len(body)
        sock.sendto(_HEADER.pack(size, _DUMP_ROUTES, _REQUEST | _DUMP, 1, 0) + body, (0, 0))
        while True:
            for kind, message in _messages(sock.recv(_MAX_MESSAGE)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", message)[0]
                    raise OSError(code, "the routing table cannot be read")
                if kind == _A_ROUTE and (network := select(message)) is not None:
                    yield network


async def follow_own_networks(
    changed: Callable[[list[IPv4Network]], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `changed` with `own_networks()` now, and again after every change of routes; never ends.

    Raises:
        OSError: the kernel does not tell.
    """
    with trio.socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        # First listen, then ask: nothing that changes in between is missed.
        await sock.bind((0, _IPV4_ROUTES))
        changed(own_networks())
        task_status.started()
        while True:
            try:
                await sock.recv(_MAX_MESSAGE)
            except OSError as err:
                if err.errno != errno.ENOBUFS:  # there was more than the socket holds: look again
                    raise
            changed(own_networks())


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        size, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : size]
        data = data[(size + 3) & ~3 :]


def _own_network(message: bytes) -> IPv4Network | None:
    network, table, kind = _route(message)
    return network if table == _LOCAL_TABLE and kind in _OWN_TYPES else None


def _routed_network(message: bytes) -> IPv4Network | None:
    network, table, _ = _route(message)
    return network if table != _LOCAL_TABLE and network.prefixlen > 0 else None


def _route(message: bytes) -> tuple[IPv4Network, int, int]:
    """The destination, the table and the type of a route."""
    _, prefix, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(message)
    destination = bytes(4)
    rest = message[_ROUTE.size :]
    while rest:
        size, attribute = _ATTRIBUTE.unpack_from(rest)
        value = rest[_ATTRIBUTE.size : size]
        if attribute == _DESTINATION:
            destination = value
        elif attribute == _TABLE:
            (table,) = struct.unpack("=I", value)
        rest = rest[(size + 3) & ~3 :]
    return IPv4Network((destination, prefix)), table, kind
