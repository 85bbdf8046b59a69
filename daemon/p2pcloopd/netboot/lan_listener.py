"""Where machines of a LAN connect: at one interface, and for addresses of its network."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address

import ifaddr
import trio

from p2pcloop.errors import BusyError, GuestError
from p2pcloop.words import tr
from p2pcloopd.netboot.interface import Interface

_BACKLOG = 256


@asynccontextmanager
async def lan_listener(interface: Interface, port: int) -> AsyncIterator[trio.SocketListener]:
    """Listen at an interface's address, for what arrives by that interface alone.

    An address alone would not do: Linux accepts packets for it at any interface (SO_BINDTODEVICE,
    socket(7)). Programs of this machine pass for ones behind the interface: see `is_behind`.

    Raises:
        BusyError: another program listens there.
        GuestError: the system refuses.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.name.encode())
            sock.bind((interface.address, port))
            sock.listen(_BACKLOG)
        except OSError as err:
            where = f"{interface.address}:{port}"
            if err.errno == errno.EADDRINUSE:
                raise BusyError(
                    tr("another program listens on {where} already", where=where),
                    hint="`ss -tlpn` names it: end it, or give another --port",
                ) from err
            reason = os.strerror(err.errno or 0)
            raise GuestError(
                tr(
                    "cannot listen on {where} at {interface}: {reason}",
                    where=where,
                    interface=interface.name,
                    reason=reason,
                )
            ) from err
        own = trio.socket.from_stdlib_socket(sock.dup())
    with own:
        yield trio.SocketListener(own)


def is_behind(interface: Interface, address: str) -> bool:
    """Whether a client is a machine of an interface's network, and not this one.

    Args:
        address: of the client; empty if it has gone.
    """
    if not address or IPv4Address(address) not in interface.network:
        return False
    return all(address != ip.ip for card in ifaddr.get_adapters() for ip in card.ips)
