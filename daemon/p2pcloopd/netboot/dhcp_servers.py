"""Asks a LAN whether a DHCP server answers there, without taking an address of it."""

from __future__ import annotations

import secrets
import socket
from ipaddress import IPv4Address

import trio

from p2pcloop.protocol.dhcp import discover_frame, parse_offer
from p2pcloopd.netboot.interface import Interface

_IPV4 = 0x0800
_MAX_FRAME = 2048
_TRIES = 2

SECONDS = 4.0
"""Until a server has offered an address: some look for 3 seconds whether it is in use already."""


async def find_server(interface: Interface, seconds: float = SECONDS) -> IPv4Address | None:
    """Return a DHCP server that offers an address at an interface; None where none does.

    Raises:
        OSError: the interface takes no frames.
    """
    transaction = secrets.randbits(32)
    with trio.socket.from_stdlib_socket(
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_IPV4))
    ) as frames:
        await frames.bind((interface.name, _IPV4))
        for _ in range(_TRIES):
            await frames.send(discover_frame(interface.mac, transaction))
            with trio.move_on_after(seconds / _TRIES):
                while True:
                    offer = parse_offer(await frames.recv(_MAX_FRAME), transaction)
                    if offer is not None:
                        return offer
    return None
