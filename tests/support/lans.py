"""A LAN of guests, from the taps that its guests would have."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from p2pcloop.store.home import Home
from p2pcloopd.guest.network import lan, lan_owner
from p2pcloopd.guest.network.card import Card
from p2pcloopd.guest.system.addresses import HOST_ADDRESS
from tests.support.frames import ARP, IPV4, Segment, Station, checksum
from tests.support.waiting import BOUND

PORT = 40000
"""The port that a wire's datagrams come from."""


def ip(*words: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *words], check=True)


def own_lan(home: Home, name: str) -> None:
    """Start a LAN's owner as a child of this process, with what this process has changed of it."""
    pid = os.fork()
    if not pid:
        sys.argv[1:] = [lan.address_of(home, name)[1:].decode()]
        os._exit(lan_owner.main())
    os.waitpid(pid, 0)  # it listens now, and goes on in the background


class Wire:
    """A guest's end of its card."""

    def __init__(self, card: Card) -> None:
        assert card.addresses is not None
        self.tap = card.tap
        self.addresses = card.addresses
        mac = bytes.fromhex(card.mac.replace(":", ""))
        self.station = Station(mac, socket.inet_aton(card.addresses.guest))
        self._gateway = b""
        self._echoes = 0

    def send(self, frame: bytes) -> None:
        os.write(self.tap, frame)

    def frames(self, seconds: float = BOUND) -> Iterator[bytes]:
        """Each frame that comes, until none has come for so long."""
        while select.select([self.tap], [], [], seconds)[0]:
            yield os.read(self.tap, 1 << 16)

    def gateway(self) -> bytes:
        """The hardware address of the LAN's gateway. It is asked for again each second, as a guest
        does: the bridge of a new LAN drops what its host sends before the kernel has seen that it
        has a port, and that may take a second."""
        wanted = socket.inet_aton(self.addresses.gateway)
        for _ in range(int(BOUND)):
            if self._gateway:
                return self._gateway
            self.send(self.station.arp_request(wanted))
            for frame in self.frames(1):
                if kind_of(frame) == ARP and frame[20:22] == b"\0\2" and frame[28:32] == wanted:
                    self._gateway = frame[6:12]
                    break
        raise TimeoutError("the gateway does not answer")

    def packet(
        self, address: str, protocol: int, segment: Segment, to: bytes = b"", **options: Any
    ) -> None:
        """Send an IP packet, to the gateway unless told otherwise.

        Args:
            to: a hardware address.
            options: `station`, where it is not the guest's own.
        """
        station: Station = options.get("station", self.station)
        destination = socket.inet_aton(address)
        packet = station.ip_packet(destination, protocol, segment(destination))
        self.send(station.ethernet(to or self.gateway(), IPV4, packet))

    def udp(self, address: str, port: int, data: bytes, **options: Any) -> None:
        """Send a datagram; options as for `packet`."""
        segment = self.station.udp_datagram(PORT, port, data)
        self.packet(address, socket.IPPROTO_UDP, segment, **options)

    def pass_helper(self) -> None:
        """Return when the helper outside has dealt with all that was sent before: it answers an
        ICMP echo (RFC 792) itself. On a busy machine it may take longer to start than the LAN's
        gateway asks for its hardware address, so the question is repeated."""
        self._echoes += 1
        head, rest = b"\x08\0", struct.pack("!HH", 7, self._echoes) + b"echo"
        echo = head + checksum(head + b"\0\0" + rest).to_bytes(2, "big") + rest
        for _ in range(int(BOUND)):
            self.packet(HOST_ADDRESS, socket.IPPROTO_ICMP, lambda _: echo)
            for frame in self.frames(1):
                is_icmp = kind_of(frame) == IPV4 and frame[23] == socket.IPPROTO_ICMP
                if is_icmp and frame[34:36] == b"\0\0" and frame[38 : 38 + len(rest)] == rest:
                    return
        raise TimeoutError("the helper does not answer")

    def look_up(self, name: str) -> tuple[int, str]:
        """Ask the LAN's name server for an address: the code of its answer (RFC 1035), and the
        last four bytes of it, which are the address if the code is 0."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        query = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
        self.udp(self.addresses.nameserver, 53, query)
        said = next(filter(None, map(content, self.frames())))
        return said[3] & 15, socket.inet_ntoa(said[-4:])


def until(wire: Wire, last: bytes, times: int = 1) -> Iterator[bytes]:
    """The frames at a wire up to one of them, the last of `times` that are equal."""
    for frame in wire.frames():
        yield frame
        times -= frame == last
        if not times:
            return


def kind_of(frame: bytes) -> int:
    """The type of what a frame carries."""
    return int.from_bytes(frame[12:14], "big")


def content(frame: bytes) -> bytes:
    """What a datagram for a wire's port holds; empty for other frames."""
    is_udp = kind_of(frame) == IPV4 and frame[23] == socket.IPPROTO_UDP
    length = int.from_bytes(frame[38:40], "big") if is_udp else 0
    return frame[42 : 34 + length] if frame[36:38] == PORT.to_bytes(2, "big") else b""
