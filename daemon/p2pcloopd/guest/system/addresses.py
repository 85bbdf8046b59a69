"""The wires between a guest and its helpers (libslirp): their addresses and longest packet."""

from __future__ import annotations

from ipaddress import IPv4Network

from p2pcloop.frozen import dataclass

GUEST_INTERFACE = "vec0"
PREFIX_LENGTH = 24
GUEST_ADDRESS = "10.0.2.15"
HOST_ADDRESS = "10.0.2.2"
NAMESERVER_ADDRESS = "10.0.2.3"
WIRE_NETWORK = IPv4Network(f"10.0.2.0/{PREFIX_LENGTH}")
"""The network on the wire, whatever networks the host has."""

DISPLAY_INTERFACE = "vec1"
PC_INTERFACE, PC_DISPLAY_INTERFACE = "eth0", "eth1"
PC_CARD, PC_DISPLAY_CARD = "04", "05"
"""Of a guest in QEMU: the names of its cards, and their places on the PCI bus, in hexadecimal."""

DISPLAY_PREFIX_LENGTH = 29
DISPLAY_NETWORK = f"192.0.0.0/{DISPLAY_PREFIX_LENGTH}"
DISPLAY_GUEST_ADDRESS = "192.0.0.1"
DISPLAY_ADDRESS = "192.0.0.2"
DISPLAY_UNUSED_ADDRESS = "192.0.0.3"
"""The wire to a guest's X server. No network has these addresses: 192.0.0.0/29 is for use inside
one machine (RFC 7335). The last one is libslirp's name server, which the wire does not reach."""

X_PORT = 6000
DISPLAY = f"{DISPLAY_ADDRESS}:0"
"""The X server of a guest, as X clients call it."""

MTU = 15900
"""Bytes of the longest IP packet on a wire. Guest and helper spend their time on frames, not on
bytes: with 1500 a guest sends at a sixth of this speed. UML has 64 buffers ready for frames, of the
next power of two each; this fits 16 KiB with Ethernet's header and the kernel's own. Frames of
32 KiB are hardly faster, and stall: libslirp acknowledges two segments at once, a lone one after
200 ms, and its window holds few of these (docs/measurements/2026-11-guest-network.md)."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """IPv4 addresses that a guest's card gets before the image's own programs run.

    Attributes:
        guest: its own.
        prefix_length: bits of the network's part of it.
        gateway: leads to all other networks.
        nameserver: answers DNS.
    """

    guest: str
    prefix_length: int
    gateway: str
    nameserver: str


USER = Addresses(GUEST_ADDRESS, PREFIX_LENGTH, HOST_ADDRESS, NAMESERVER_ADDRESS)
"""On the wire of `--net user`."""
