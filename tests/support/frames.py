"""Ethernet frames as a guest would send them, byte by byte."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

Segment = Callable[[bytes], bytes]
"""What an IP packet carries, given its destination."""

EVERYBODY = b"\xff" * 6
ARP, IPV4 = 0x0806, 0x0800


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True, slots=True)
class Station:
    """The sender of frames: its hardware address and its IPv4 address, four bytes."""

    mac: bytes
    address: bytes

    def ethernet(self, destination: bytes, kind: int, payload: bytes) -> bytes:
        return (destination + self.mac + struct.pack("!H", kind) + payload).ljust(60, b"\0")

    def arp_request(self, target: bytes) -> bytes:
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + self.mac + self.address
        return self.ethernet(EVERYBODY, ARP, body + bytes(6) + target)

    def ip_packet(self, destination: bytes, protocol: int, payload: bytes) -> bytes:
        def header(check: int) -> bytes:
            return struct.pack(
                "!BBHHHBBH4s4s",
                *(0x45, 0, 20 + len(payload), 1, 0, 64, protocol, check),
                *(self.address, destination),
            )

        return header(checksum(header(0))) + payload

    def tcp_syn(self, source_port: int, port: int) -> Segment:
        def for_destination(destination: bytes) -> bytes:
            def segment(check: int) -> bytes:
                return struct.pack(
                    "!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, 2, 65535, check, 0
                )

            pseudo = self.address + destination + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20)
            return segment(checksum(pseudo + segment(0)))

        return for_destination

    def udp_datagram(self, source_port: int, port: int, data: bytes = b"hello") -> Segment:
        # Checksum 0: none.
        return lambda _: struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data
