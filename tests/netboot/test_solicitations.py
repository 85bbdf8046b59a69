"""Machines that look for an IPv6 router where there is none are told so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.links import network
from bench.links.bare_machines import BRIDGE, have_ipv6, lan
from p2pcloopd.netboot.solicitations import Impatient
from tests.support.waiting import BOUND

IPXE = (0, 0.31, 0.87, 1.92, 3.94, 8.01)
"""Seconds at which QEMU's iPXE asks, where it gets no answer."""


def test_who_asks_as_ipxe_does_is_answered_from_the_third_time_on() -> None:
    impatient = Impatient()
    told = [impatient.asks("fe80::1", 100 + second) for second in IPXE]
    assert told == [False, False, True, True, False, False]


def test_a_system_that_runs_is_not_answered() -> None:
    """It waits four seconds between its questions."""
    impatient = Impatient()
    assert not any(impatient.asks("fe80::1", 4 * n) for n in range(9))


def test_each_machine_is_counted_alone() -> None:
    impatient = Impatient()
    assert not any(impatient.asks(f"fe80::{n}", 0) for n in range(9))
    assert not any(impatient.asks(f"fe80::{n}", 1) for n in range(9))
    assert all(impatient.asks(f"fe80::{n}", 2) for n in range(9))


def test_a_flood_of_machines_is_forgotten() -> None:
    impatient = Impatient()
    for _ in range(2):
        assert not impatient.asks("fe80::1", 0)
    for n in range(2, 300):
        impatient.asks(f"fe80::{n:x}", 0)
    assert not impatient.asks("fe80::1", 0)
    assert len(impatient._asked) <= 256


SERVER = f"""
import trio, trio.testing
from p2pcloopd.netboot.interface import find_interface
from p2pcloopd.netboot.solicitations import answer_solicitations

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_solicitations, find_interface("{BRIDGE}"))
        await trio.testing.wait_all_tasks_blocked()
        print("serves", flush=True)

trio.run(main)
"""

MACHINE = """
import contextlib, socket, struct
sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
number = socket.if_nametoindex("eth0")
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
advertisements_only = bytearray(b"\\xff" * 32)
advertisements_only[16:20] = struct.pack("=I", ~(1 << 134 % 32) & 0xFFFFFFFF)
sock.setsockopt(socket.IPPROTO_ICMPV6, 1, bytes(advertisements_only))
sock.settimeout(0.3)
while True:
    with contextlib.suppress(OSError):  # no answer; or its address is not its own yet
        sock.sendto(bytes([133]) + bytes(7), ("ff02::2", 0, 0, number))
        data, options, _, (host, *_) = sock.recvmsg(100, 100)
        break
print(data[:2] + data[4:], options[0][2][0], host.startswith("fe80::"))
"""


@pytest.mark.skipif(
    network.why_not() is not None, reason=f"no network namespaces: {network.why_not()}"
)
def test_the_answer_offers_nothing() -> None:
    with lan() as (here, other):
        have_ipv6(other, "eth0")
        words = [*here.inside, sys.executable, "-c", SERVER]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                assert server.stdout.readline() == "serves\n"
                words = [*other.inside, sys.executable, "-c", MACHINE]
                done = subprocess.run(
                    words, capture_output=True, text=True, timeout=BOUND, check=True
                )
            finally:
                server.kill()
    assert done.stdout == f"{bytes([134, 0]) + bytes(12)!r} 255 True\n"
