"""This machine's own addresses, as a guest's network is kept away from them: in a network namespace
that the test makes, where addresses come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import BOUND

pytestmark = pytest.mark.interop

CHECKOUT = Path(__file__).parents[2]

PROGRAM = """
import json, socket, subprocess, sys
from pathlib import Path
import trio
from p2pcloopd.guest.network import frame_filter
from tests.guest.test_network import open_wire, tcp_syn, udp_datagram
from tests.support.listeners import Listeners

scratch, guarded, *wanted = sys.argv[1:]
install, known, changed = frame_filter.install, set(), trio.Event()

def ip(*words):
    subprocess.run(["ip", *words], check=True)

def install_and_tell(sock, nameserver, own, **more):
    global changed
    if guarded == "guarded":
        install(sock, nameserver, own, **more)
    known.update(map(str, own))
    changed.set()
    changed = trio.Event()

async def try_all(wire, here, ways, source):
    for way in ways:
        kind, address = way.split()
        if kind == "tcp":
            await wire.send(address, socket.IPPROTO_TCP, tcp_syn(source, here.tcp))
        else:
            datagram = udp_datagram(source, here.udp, address.encode())
            await wire.send(address, socket.IPPROTO_UDP, datagram)
    await wire.round_trip()
    here.look()

async def reach(wire, here, ways):
    await try_all(wire, here, ways, 40000)
    if guarded != "guarded":
        source = 40001
        while not {*ways} <= here.reached:
            await trio.sleep(0.01)
            await try_all(wire, here, ways, source)
            source += 1

async def main():
    ip("link", "set", "lo", "up", "multicast", "on")
    for address in ("192.0.2.1/24", "192.0.2.2/32", "169.254.169.254/32"):
        ip("address", "add", address, "dev", "lo")
    ip("route", "add", "local", "203.0.113.0/24", "dev", "lo")
    ip("route", "add", "default", "dev", "lo")
    with Listeners() as here:
        here.join("224.0.0.251", "192.0.2.1")
        async with open_wire(Path(scratch)) as wire:
            await reach(wire, here, wanted)
            ip("address", "add", "198.51.100.7/32", "dev", "lo")
            while "198.51.100.7/32" not in known:
                await changed.wait()
            await reach(wire, here, ["tcp 198.51.100.7", "udp 198.51.100.7"])
        print(json.dumps(sorted(here.reached)))

frame_filter.install = install_and_tell
trio.run(main)
"""

HERE = ["127.0.0.1", "169.254.169.254", "192.0.2.1", "203.0.113.9"]
OTHERS = ["192.0.2.2", "192.0.2.255", "0.0.0.0"]
GROUP = "udp 224.0.0.251"


def in_a_namespace(guarded: str, scratch: Path, *ways: str) -> list[str]:
    """By which ways this machine is reached, of the given ones and at an address that is new."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", "--net", *user, sys.executable, "-c", PROGRAM, scratch, guarded, *ways],
        cwd=CHECKOUT, stdout=subprocess.PIPE, timeout=BOUND, check=True,
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout)
    return found


def both(*addresses: str) -> list[str]:
    return [f"{way} {address}" for way in ("tcp", "udp") for address in addresses]


def test_no_frame_reaches_an_address_of_this_machine(tmp_path: Path) -> None:
    ways = [*both(*HERE, *OTHERS), GROUP, "tcp 224.0.0.251"]
    assert in_a_namespace("guarded", tmp_path, *ways) == []


def test_it_is_the_filter_that_keeps_them_away(tmp_path: Path) -> None:
    """Without it they are reached: the test above can fail."""
    ways = [*both(*HERE), GROUP]
    reached = in_a_namespace("open", tmp_path, *ways)
    assert reached == sorted([*ways, *both("198.51.100.7")])
