"""Ports of this machine that lead into a guest: the option, and the helper between both ends."""

from __future__ import annotations

import os
import shutil
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pcloop.errors import BusyError, NeedsPackageError, UsageError
from p2pcloopd.guest.network import slirp as network
from p2pcloopd.guest.network.forwarding import MOST, ForwardedPort, bound_ports, parse_port
from p2pcloopd.guest.system import addresses
from tests.guest.test_network import GUEST, Wire, check_closed, ethernet, udp_datagram
from tests.support.frames import checksum
from tests.support.ports import free_port
from tests.support.waiting import BOUND

LOOPBACK = "127.0.0.1"
HOST = socket.inet_aton(addresses.HOST_ADDRESS)
STAND_IN = socket.inet_aton("192.0.0.8")


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("2222:22", ForwardedPort(LOOPBACK, 2222, 22, "tcp")),
        ("2222:22/tcp", ForwardedPort(LOOPBACK, 2222, 22, "tcp")),
        ("0.0.0.0:53:5353/udp", ForwardedPort("0.0.0.0", 53, 5353, "udp")),
    ],
)
def test_parse(text: str, port: ForwardedPort) -> None:
    assert parse_port(text) == port
    assert parse_port(port.option) == port
    assert port.is_open_to_others is text.startswith("0")


@pytest.mark.parametrize(
    "text",
    [
        *("", "22", ":22", "22:", "22:22/sctp", "0:22", "22:0", "65536:22", "22:65536", "a:b"),
        *("host:22:22", "1.2.3:22:22", "[::1]:22:22", "22:22:22:22", "22:22 ", "2२:22"),
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_port(text)
    assert "2222:22" in str(caught.value.hint)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_in_use_is_refused_and_the_others_are_closed_again(protocol: str) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    free = parse_port(f"{free_port()}:1/{protocol}")
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        if protocol == "tcp":
            other.listen()
        taken = parse_port(f"{other.getsockname()[1]}:22/{protocol}")
        with pytest.raises(BusyError, match=f"port {taken.port} of 127.0.0.1") as caught:
            with bound_ports([free, taken]):
                pytest.fail("it was opened")
    assert "--port" in str(caught.value.hint)
    with bound_ports([free]):
        pass


def test_a_port_that_is_given_twice_is_refused() -> None:
    ports = [parse_port("2222:22"), parse_port("2222:80/udp"), parse_port("127.0.0.1:2222:23")]
    with pytest.raises(UsageError, match=r"port 127\.0\.0\.1:2222/tcp is given twice"):
        with bound_ports(ports):
            pass


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="does not have that address"):
        with bound_ports([parse_port("192.0.2.7:2222:22")]):
            pytest.fail("it was opened")


def test_more_ports_than_the_helper_takes() -> None:
    with pytest.raises(UsageError, match=str(MOST)):
        with bound_ports([parse_port(f"{n}:22") for n in range(2000, 2001 + MOST)]):
            pytest.fail("they were opened")


async def test_without_a_compiler_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **rest: None if name in ("cc", "gcc") else find(name, **rest)
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with bound_ports([parse_port(f"{free_port()}:22")]) as ports:
        with pytest.raises(NeedsPackageError, match="forwarded ports") as caught:
            async with network.user_network(pytest.fail, ports=ports):
                pytest.fail("it started")
    assert "gcc" in str(caught.value.hint)


@asynccontextmanager
async def forwarded(word: str) -> AsyncIterator[tuple[Wire, int]]:
    """The guest's end of the wire, and a port of this machine that leads to it."""
    port = free_port()
    with bound_ports([parse_port(f"{port}:{word}")]) as ports, trio.fail_after(BOUND):
        async with network.user_network(pytest.fail, ports=ports) as ours:
            with trio.socket.fromfd(ours.fileno(), ours.family, ours.type) as sock:
                wire = Wire(sock)
                await wire.learn_gateway()
                # The helper asks for the guest's hardware address before it sends a packet.
                await sock.send(arp_reply(wire.gateway))
                yield wire, port


def arp_reply(gateway: bytes) -> bytes:
    mac = bytes.fromhex("020000000015")
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + mac + GUEST.address + gateway + HOST
    return ethernet(gateway, 0x0806, body)


async def packet(wire: Wire, protocol: int) -> bytes:
    """The next IP packet of a protocol that comes to the guest."""
    while True:
        frame = await wire.sock.recv(65536)
        if frame[12:14] == b"\x08\x00" and frame[23] == protocol:
            return frame[14:]


def tcp_segment(
    port: int, to_port: int, sequence: int, acknowledged: int, flags: int, data: bytes = b""
) -> bytes:
    def segment(check: int) -> bytes:
        head = (port, to_port, sequence, acknowledged, 5 << 4, flags, 65535, check, 0)
        return struct.pack("!HHIIBBHHH", *head) + data

    pseudo = GUEST.address + HOST + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20 + len(data))
    padding = bytes(len(data) % 2)
    return segment(checksum(pseudo + segment(0) + padding))


@pytest.mark.interop
async def test_a_client_of_a_guest_that_goes_on_waits_until_its_card_is_plugged_in() -> None:
    port, plugged = free_port(), trio.Event()
    with bound_ports([parse_port(f"{port}:22")]) as ports, trio.fail_after(BOUND):
        async with (
            network.user_network(pytest.fail, ports=ports, plugged=plugged.wait) as ours,
            await trio.open_tcp_stream("127.0.0.1", port),
        ):
            with trio.socket.fromfd(ours.fileno(), ours.family, ours.type) as sock:
                await trio.testing.wait_all_tasks_blocked(0.05)
                with pytest.raises(BlockingIOError):
                    ours.recv(65536, socket.MSG_DONTWAIT)
                plugged.set()
                asked = await sock.recv(65536)  # for the guest's hardware address
                assert (asked[12:14], asked[38:42]) == (b"\x08\x06", GUEST.address)


@pytest.mark.interop
async def test_a_connection_leads_into_the_guest_and_back() -> None:
    async with forwarded("22") as (wire, port), AsyncExitStack() as stack:
        client = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
        syn = await packet(wire, socket.IPPROTO_TCP)
        assert syn[12:16] == HOST
        assert syn[33] & 0x3F == 0x02
        from_port, to_port, sequence = struct.unpack("!HHI", syn[20:28])
        assert to_port == 22

        async def answer(own: int, flags: int, data: bytes = b"") -> None:
            segment = tcp_segment(22, from_port, own, sequence + 1, flags, data)
            await wire.send(addresses.HOST_ADDRESS, socket.IPPROTO_TCP, lambda _: segment)

        await answer(1000, 0x12)
        await answer(1001, 0x18, b"hello from the guest")
        assert await client.receive_some(100) == b"hello from the guest"
        await client.send_all(b"and back")
        while not (data := (await packet(wire, socket.IPPROTO_TCP))[40:]).strip(b"\0"):
            pass
        assert data == b"and back"


@pytest.mark.interop
async def test_datagrams_lead_into_the_guest_and_back_to_their_client_alone() -> None:
    async with forwarded("53/udp") as (wire, port):
        sockets = [trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        first, second, other = sockets
        for sock in sockets:
            await sock.bind(("127.0.0.1", 0))
        seen = []
        for sock, data in ((first, b"one"), (second, b"two"), (first, b"three")):
            await sock.sendto(data, ("127.0.0.1", port))
            arrived = await packet(wire, socket.IPPROTO_UDP)
            assert arrived[12:16] == STAND_IN
            assert arrived[28 : 28 + len(data)] == data
            seen.append(struct.unpack("!H", arrived[20:22])[0])
        assert seen[0] == seen[2] != seen[1]

        stand_in = socket.inet_ntoa(STAND_IN)
        for to_port in (other.getsockname()[1], seen[1] + 1, 1, 65535):
            await wire.send(stand_in, socket.IPPROTO_UDP, udp_datagram(53, to_port, b"no"))
        for address in (addresses.HOST_ADDRESS, "127.0.0.1"):
            for sock in sockets:
                stray = udp_datagram(53, sock.getsockname()[1], b"no")
                await wire.send(address, socket.IPPROTO_UDP, stray)
        # From another port of the guest than the forwarded one: the client did not ask that.
        await wire.send(stand_in, socket.IPPROTO_UDP, udp_datagram(54, seen[0], b"no"))
        await wire.send(stand_in, socket.IPPROTO_UDP, udp_datagram(53, seen[1], b"for two"))
        await wire.send(stand_in, socket.IPPROTO_UDP, udp_datagram(53, seen[0], b"for one"))
        assert await second.recv(100) == b"for two"
        assert await first.recv(100) == b"for one"
        await wire.round_trip()
        for sock in sockets:
            with trio.move_on_after(0.1):
                pytest.fail(f"a stray datagram: {await sock.recv(100)!r}")
            sock.close()


@pytest.mark.interop
async def test_the_hosts_loopback_stays_closed_beside_a_forwarded_port() -> None:
    async with forwarded("22") as (wire, _):
        for address in (addresses.HOST_ADDRESS, "127.0.0.1", "0.0.0.0"):
            await check_closed(wire, address)


def test_a_low_port_needs_root() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may open it")
    with pytest.raises(UsageError, match="only root"), bound_ports([parse_port("22:22")]):
        pytest.fail("it was opened")
