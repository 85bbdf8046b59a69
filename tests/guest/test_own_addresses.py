"""This machine's own addresses, as a guest's network is kept away from them: in a network namespace
that the test makes, where addresses come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.interop

CHECKOUT = Path(__file__).parents[2]

PROGRAM = """
import json, socket, subprocess, sys
from contextlib import suppress
from pathlib import Path
import trio
from p2pcloopd.guest.network import frame_filter
from tests.guest.test_network import open_wire, tcp_syn, udp_datagram

scratch, guarded, *addresses = sys.argv[1:]
install, known, changed = frame_filter.install, set(), trio.Event()

def ip(*words):
    subprocess.run(["ip", *words], check=True)

def install_and_tell(sock, nameserver, own):
    global changed
    if guarded == "guarded":
        install(sock, nameserver, own)
    known.update(map(str, own))
    changed.set()
    changed = trio.Event()

async def reached(wire, address, tcp, udp):
    await wire.send(address, socket.IPPROTO_TCP, tcp_syn(40000, tcp.getsockname()[1]))
    await wire.send(address, socket.IPPROTO_UDP, udp_datagram(40000, udp.getsockname()[1]))
    await wire.round_trip()
    # No wire lies between: what the helper has sent to this machine has arrived.
    found = []
    with suppress(BlockingIOError):
        tcp.accept()
        found.append("tcp")
    with suppress(BlockingIOError):
        udp.recv(100)
        found.append("udp")
    return found

async def main():
    ip("link", "set", "lo", "up", "multicast", "on")
    for address in ("192.0.2.1/24", "192.0.2.2/32", "169.254.169.254/32"):
        ip("address", "add", address, "dev", "lo")
    ip("route", "add", "local", "203.0.113.0/24", "dev", "lo")
    ip("route", "add", "default", "dev", "lo")
    with (
        socket.create_server(("0.0.0.0", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("0.0.0.0", 0))
        group = socket.inet_aton("224.0.0.251") + socket.inet_aton("192.0.2.1")
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        for listener in (tcp, udp):
            listener.setblocking(False)
        async with open_wire(Path(scratch)) as wire:
            found = {each: await reached(wire, each, tcp, udp) for each in addresses}
            ip("address", "add", "198.51.100.7/32", "dev", "lo")
            with trio.fail_after(20):
                while "198.51.100.7/32" not in known:
                    await changed.wait()
            found["new"] = await reached(wire, "198.51.100.7", tcp, udp)
        print(json.dumps(found))

frame_filter.install = install_and_tell
trio.run(main)
"""

ADDRESSES = [
    *("192.0.2.1", "192.0.2.2", "192.0.2.255", "203.0.113.9", "127.0.0.1", "0.0.0.0"),
    *("169.254.169.254", "224.0.0.251"),
]


def in_a_namespace(guarded: str, scratch: Path) -> dict[str, list[str]]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", "--net", *user, sys.executable, "-c", PROGRAM, scratch, guarded, *ADDRESSES],
        cwd=CHECKOUT, stdout=subprocess.PIPE, timeout=120, check=True,
    )  # fmt: skip
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_no_frame_reaches_an_address_of_this_machine(tmp_path: Path) -> None:
    found = in_a_namespace("guarded", tmp_path)
    assert found == {address: [] for address in [*ADDRESSES, "new"]}


def test_it_is_the_filter_that_keeps_them_away(tmp_path: Path) -> None:
    """Without it they are reached: the test above can fail."""
    found = in_a_namespace("open", tmp_path)
    both = ["tcp", "udp"]
    for address in ("192.0.2.1", "203.0.113.9", "169.254.169.254", "127.0.0.1", "new"):
        assert found[address] == both, address
    assert found["224.0.0.251"] == ["udp"]
