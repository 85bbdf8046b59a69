"""Ports of this machine that a guest may connect to: the option, the filter, and the helper."""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.errors import GuestError, UsageError
from p2pcloopd.guest.network import frame_filter
from p2pcloopd.guest.network.opened import OpenedPort, check_opened, parse_opened
from p2pcloopd.guest.system import addresses
from tests.guest.test_network import (
    check_closed,
    ethernet,
    fragment,
    ip_packet,
    open_wire,
    tcp_syn,
    udp_datagram,
)
from tests.support.waiting import until

HOST, OWN = addresses.HOST_ADDRESS, "198.51.100.7"
OPENED = [(HOST, 3128), (OWN, 80)]
ICMP, TCP, UDP, SCTP = 1, 6, 17, 132
FIN, SYN, RST, ACK = 1, 2, 4, 16


def test_parse() -> None:
    assert parse_opened("3128") == parse_opened("127.0.0.1:3128") == OpenedPort("127.0.0.1", 3128)
    assert parse_opened("3128").place == (HOST, 3128)
    assert OpenedPort(OWN, 80).place == (OWN, 80)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "0", "65536", "x", "1:2:3", "1.2.3:80", "256.0.0.1:80", "host:80", "[::1]:80"),
        *("127.0.0.53:53", "0.0.0.0:80", "169.254.169.254:80", "192.0.2.7:80", "80/udp", "٨٠"),
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="--open") as caught:
        parse_opened(text)
    assert "3128" in str(caught.value.hint)


@pytest.mark.parametrize("address", [HOST, addresses.NAMESERVER_ADDRESS, "10.0.2.77"])
def test_an_address_of_the_wire_is_refused_even_if_it_is_this_machines(address: str) -> None:
    """The guest would reach the loopback there, or a name server."""
    with pytest.raises(UsageError, match="no guest can connect to"):
        parse_opened(f"{address}:80")


def tcp(address: str, port: int, flags: int) -> bytes:
    segment = bytearray(tcp_syn(1, port)(socket.inet_aton(address)))
    segment[13] = flags
    return packet(address, TCP, bytes(segment))


def udp(address: str, port: int) -> bytes:
    return packet(address, UDP, udp_datagram(1, port)(b""))


def packet(address: str, protocol: int, payload: bytes) -> bytes:
    return ip_packet(socket.inet_aton(address), protocol, payload)


OPEN = [
    tcp(HOST, 3128, SYN),
    tcp(OWN, 80, SYN),
    tcp(OWN, 80, ACK),
    # Of a client of a forwarded port, which the guest answers.
    *(tcp(HOST, 41000, flags) for flags in (ACK, SYN | ACK, FIN | ACK, RST, RST | ACK)),
    packet(HOST, ICMP, bytes(8)),
    udp(HOST, 67),
    tcp("192.0.2.7", 80, SYN),
]
CLOSED = [
    *(tcp(HOST, port, flags) for port in (80, 3129) for flags in (SYN, SYN | FIN, SYN | RST)),
    fragment(tcp(HOST, 3128, SYN)),
    fragment(tcp(OWN, 80, SYN)),
    udp(HOST, 3128),
    packet(HOST, SCTP, bytes(12)),
    tcp(OWN, 81, SYN),
    tcp(OWN, 81, ACK),
    tcp(OWN, 3128, SYN),
    udp(OWN, 80),
    packet(OWN, ICMP, bytes(8)),
    tcp("127.0.0.1", 3128, SYN),
    tcp("10.0.2.77", 3128, SYN),
    tcp("0.0.0.0", 3128, SYN),
]


def test_the_filter_lets_pass_what_is_opened_and_nothing_more() -> None:
    guest, helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with guest, helper:
        own = [IPv4Network(f"{OWN}/32")]
        frame_filter.install(helper, addresses.NAMESERVER_ADDRESS, own, alias=HOST, opened=OPENED)
        helper.setblocking(False)
        for each in (*CLOSED, *OPEN, *CLOSED):
            frame = ethernet(b"\x52" * 6, 0x0800, each)
            guest.send(frame)
            if each in OPEN:
                assert helper.recv(2048) == frame
            else:
                with pytest.raises(BlockingIOError):
                    helper.recv(2048)


def test_many_ports_may_be_opened() -> None:
    guest, helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with guest, helper:
        opened = [(address, port) for address in (HOST, OWN) for port in range(1000, 1200)]
        own = [IPv4Network(f"{OWN}/32")]
        frame_filter.install(helper, addresses.NAMESERVER_ADDRESS, own, alias=HOST, opened=opened)
        helper.setblocking(False)
        for address in (HOST, OWN):
            for port in (999, 1200):
                guest.send(ethernet(b"\x52" * 6, 0x0800, tcp(address, port, SYN)))
                with pytest.raises(BlockingIOError):
                    helper.recv(2048)
            frame = ethernet(b"\x52" * 6, 0x0800, tcp(address, 1199, SYN))
            guest.send(frame)
            assert helper.recv(2048) == frame


def test_more_ports_than_a_filter_holds_are_refused_as_such() -> None:
    check_opened([OpenedPort("127.0.0.1", port) for port in range(1, 101)])
    check_opened([OpenedPort("127.0.0.1", 80)] * 3000)
    for address in ("127.0.0.1", OWN):
        many = [OpenedPort(address, port) for port in range(1, 2201)]
        with pytest.raises(GuestError, match="no room for 2200 opened ports") as caught:
            check_opened(many)
        assert "--open" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("opened", "room", "why"),
    [
        (OPENED, 64, "no room for 2 opened ports"),
        (OPENED, 0, "too many addresses"),
        ([], 0, "too many addresses"),
    ],
)
def test_a_filter_for_which_the_kernel_has_no_room_is_no_bug(
    opened: Any, room: int, why: str
) -> None:
    """The sysctl net.core.optmem_max, with 20 KB in many kernels."""

    class Full:
        def setsockopt(self, _level: int, _option: int, program: bytes) -> None:
            if struct.unpack("@HP", program)[0] > room:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    full: Any = Full()
    with pytest.raises(GuestError, match=why):
        frame_filter.install(full, addresses.NAMESERVER_ADDRESS, opened=opened)


def test_ports_are_not_blamed_for_the_addresses_of_this_machine() -> None:
    own = [IPv4Network(f"198.18.{number >> 8}.{number & 255}/32") for number in range(1100)]
    guest, helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with guest, helper, pytest.raises(GuestError, match="too many addresses"):
        frame_filter.install(
            helper, addresses.NAMESERVER_ADDRESS, own, alias=HOST, opened=[(HOST, 80)]
        )


def test_another_filter_has_room_beside_one_for_ports_of_many_addresses() -> None:
    """The kernel had no room for 120 ports at another address than the loopback's."""
    check_opened([OpenedPort(OWN, port) for port in range(1, 121)])


@pytest.mark.interop
@pytest.mark.parametrize("address", [HOST, "127.0.0.1", "0.0.0.0", "255.255.255.255", "10.0.2.77"])
async def test_an_opened_port_is_reached_and_no_other(tmp_path: Path, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.setblocking(False)
        opened = parse_opened(str(service.getsockname()[1]))
        async with open_wire(tmp_path, [opened]) as wire:
            await wire.send(HOST, TCP, tcp_syn(40000, opened.port))
            await wire.round_trip()
            await until(lambda: is_called(service))
            await check_closed(wire, address)


def is_called(service: socket.socket) -> bool:
    """Whether a client has connected."""
    try:
        service.accept()[0].close()
    except BlockingIOError:
        return False
    return True
