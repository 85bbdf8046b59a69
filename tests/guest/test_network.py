"""What a guest's network helper lets through, seen from the guest's end of the wire."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import trio

from p2pcloop.errors import GuestError
from p2pcloopd.guest.network import frame_filter
from p2pcloopd.guest.network import slirp as network
from p2pcloopd.guest.network.opened import OpenedPort
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.system import addresses
from p2pcloopd.guest.system.kernel import find_busybox
from tests.support.frames import Segment, Station
from tests.support.waiting import BOUND

GUEST = Station(bytes.fromhex("020000000015"), socket.inet_aton(addresses.GUEST_ADDRESS))
ethernet, arp_request, ip_packet = GUEST.ethernet, GUEST.arp_request, GUEST.ip_packet
tcp_syn, udp_datagram = GUEST.tcp_syn, GUEST.udp_datagram


class Wire:
    """The guest's end of the socketpair; gateway is the helper's hardware address."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.gateway = b""

    async def learn_gateway(self) -> None:
        await self.sock.send(arp_request(socket.inet_aton(addresses.HOST_ADDRESS)))
        while True:
            frame = await self.sock.recv(65536)
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x02":
                self.gateway = frame[6:12]
                return

    async def send(self, address: str, protocol: int, segment: Segment) -> None:
        destination = socket.inet_aton(address)
        packet = ip_packet(destination, protocol, segment(destination))
        await self.sock.send(ethernet(self.gateway, 0x0800, packet))

    async def round_trip(self) -> None:
        """Return when the helper has dealt with all that was sent before."""
        await self.learn_gateway()


@asynccontextmanager
async def open_wire(tmp_path: Path, opened: Sequence[OpenedPort] = ()) -> AsyncIterator[Wire]:
    # Many hosts' resolver is on their loopback.
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    async with network.user_network(pytest.fail, opened=opened, resolv_conf=resolv_conf) as ours:
        with (
            trio.fail_after(BOUND),
            trio.socket.fromfd(ours.fileno(), ours.family, ours.type) as sock,
        ):
            wire = Wire(sock)
            await wire.learn_gateway()
            yield wire


@pytest.mark.interop
@pytest.mark.parametrize(
    "address",
    [
        *(addresses.HOST_ADDRESS, addresses.NAMESERVER_ADDRESS, "10.0.2.77", "10.0.2.255"),
        *("127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "255.255.255.255"),
    ],
)
async def test_hosts_loopback_is_closed(tmp_path: Path, address: str) -> None:
    async with open_wire(tmp_path) as wire:
        await check_closed(wire, address)


async def check_closed(wire: Wire, address: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        for listener in (tcp, udp):
            listener.setblocking(False)
        await wire.send(address, socket.IPPROTO_TCP, tcp_syn(40000, tcp.getsockname()[1]))
        await wire.send(address, socket.IPPROTO_UDP, udp_datagram(40000, udp.getsockname()[1]))
        await wire.round_trip()
        with pytest.raises(BlockingIOError):
            udp.recv(100)
        with pytest.raises(BlockingIOError):
            tcp.accept()


@pytest.mark.interop
async def test_the_filter_is_what_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the same frames reach the host's 127.0.0.1: the tests above can fail."""
    monkeypatch.setattr(frame_filter, "install", lambda *_, **__: None)
    async with open_wire(tmp_path) as wire:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            await udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            await wire.send("127.0.0.1", socket.IPPROTO_UDP, udp_datagram(40000, port))
            assert await udp.recv(100) == b"hello"


def fragment(packet: bytes) -> bytes:
    return packet[:6] + b"\x20\x00" + packet[8:]


@pytest.mark.parametrize(
    ("address", "port", "change", "passes"),
    [
        ("192.0.2.7", 80, bytes, True),
        ("192.0.2.7", 80, fragment, True),
        (addresses.HOST_ADDRESS, 80, bytes, True),
        (addresses.NAMESERVER_ADDRESS, 53, bytes, True),
        (addresses.NAMESERVER_ADDRESS, 54, bytes, False),
        (addresses.NAMESERVER_ADDRESS, 53, fragment, False),
        ("127.0.0.53", 53, bytes, False),
        ("0.0.0.0", 53, bytes, False),
        ("169.254.169.254", 80, bytes, False),
        ("224.0.0.251", 5353, bytes, False),
        ("255.255.255.255", 68, bytes, False),
        ("255.255.255.255", 67, fragment, False),
        ("198.51.100.7", 80, bytes, False),
        ("198.51.100.8", 80, bytes, True),
        ("203.0.113.255", 80, bytes, False),
    ],
)
def test_filter(address: str, port: int, change: Callable[[bytes], bytes], passes: bool) -> None:
    guest, helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with guest, helper:
        frame_filter.install(helper, addresses.NAMESERVER_ADDRESS, OWN)
        received = protocols_that_pass(guest, helper, address, port, change)
        assert received == ([socket.IPPROTO_UDP, socket.IPPROTO_TCP] if passes else [])


OWN = [IPv4Network("198.51.100.7/32"), IPv4Network("203.0.113.0/24")]


def protocols_that_pass(
    guest: socket.socket,
    helper: socket.socket,
    address: str,
    port: int,
    change: Callable[[bytes], bytes] = bytes,
) -> list[int]:
    destination = socket.inet_aton(address)
    for protocol, segment in (
        (socket.IPPROTO_UDP, udp_datagram(1, port)),
        (socket.IPPROTO_TCP, tcp_syn(1, port)),
    ):
        packet = ip_packet(destination, protocol, segment(destination))
        guest.send(ethernet(b"\x52" * 6, 0x0800, change(packet)))
    arp = arp_request(destination)
    guest.send(ethernet(b"\x52" * 6, 0x86DD, bytes(60)))
    guest.send(arp)
    received = []
    while (frame := helper.recv(2048)) != arp:
        assert frame[12:14] == b"\x08\x00"
        received.append(frame[23])
    return received


def test_filter_is_replaced_and_lets_dhcp_ask() -> None:
    guest, helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with guest, helper:
        for own, passes in ((OWN, False), ([], True), (OWN, False)):
            frame_filter.install(helper, addresses.NAMESERVER_ADDRESS, own)
            assert bool(protocols_that_pass(guest, helper, "198.51.100.7", 80)) is passes
        # The helper itself answers what asks all hosts for an address; TCP has no broadcasts.
        received = protocols_that_pass(guest, helper, "255.255.255.255", 67)
        assert received == [socket.IPPROTO_UDP]


def test_more_addresses_than_a_filter_holds() -> None:
    guest, helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    many = [IPv4Network((n << 8, 32)) for n in range(2000)]
    with guest, helper, pytest.raises(GuestError, match="too many addresses") as caught:
        frame_filter.install(helper, addresses.NAMESERVER_ADDRESS, many)
    assert "--net none" in str(caught.value.hint)


async def test_the_end_of_the_helper_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its program cannot be run, or a guest's frames were too much for it."""
    busybox = str(find_busybox())
    broken = sandbox.prepare(
        [busybox, "sh", "-c", "echo no such $1 >&2; exit 3", "sh", "thing"],
        visible={},
        memory=1 << 28,
        processes=9,
    )
    monkeypatch.setattr(network, "_helper", lambda *_: broken)
    said = trio.Event()
    words = []

    def say(text: str) -> None:
        words.append(text)
        said.set()

    with trio.fail_after(BOUND):
        async with network.user_network(say):
            await said.wait()
    assert words == ["has no network any more: its helper ended (exit status 3): no such thing"]
