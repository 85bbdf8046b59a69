"""Only machines of the LAN reach what is served there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.links import network
from bench.links.bare_machines import BRIDGE, lan
from bench.links.network import Host

pytestmark = pytest.mark.skipif(
    network.why_not() is not None, reason=f"no network namespaces: {network.why_not()}"
)

PORT, HTTP_PORT = 10809, 10810

SERVER = f"""
import trio
from contextlib import AsyncExitStack
from functools import partial
from p2pcloop.protocol.nbd_export import Export
from p2pcloopd.block.nbd_crowd import Limits
from p2pcloopd.block.nbd_server import serve_exports
from p2pcloopd.http.server import serve_http
from p2pcloopd.http.wire import Pace, Wire
from p2pcloopd.netboot.interface import find_interface
from p2pcloopd.netboot.lan_listener import is_behind, lan_listener
from p2pcloopd.netboot.machines import Machines
from p2pcloopd.netboot.site import NetbootSite

async def main():
    interface = find_interface("{BRIDGE}")
    admits = partial(is_behind, interface)
    listen = partial(lan_listener, interface)
    machines = Machines("00", None, print)
    async with listen({PORT}) as disks, listen({HTTP_PORT}) as http:
        async with trio.open_nursery() as nursery:
            limits = Limits(admits=admits)
            nursery.start_soon(partial(serve_exports, machines, [disks], limits=limits))
            site = NetbootSite({{"vmlinuz": b"kernel"}})
            nursery.start_soon(partial(serve_http, [http], site, Wire(), Pace(0), admits=admits))
            print("serves", flush=True)

trio.run(main)
"""

CLIENT = """
import socket, sys
host, port, source = sys.argv[1:]
try:
    with socket.create_connection((host, int(port)), 60, (source, 0)) as connected:
        connected.sendall(b"GET /vmlinuz HTTP/1.0\\r\\n\\r\\n" if port.endswith("0") else b"")
        print("gets", len(connected.recv(18)))
except ConnectionResetError:
    print("gets 0")
"""


@contextmanager
def serving(host: Host) -> Iterator[None]:
    with subprocess.Popen(
        [*host.inside, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "serves\n"
            yield
        finally:
            process.kill()


def ask(client: Host, node: Host, port: int, source: str) -> str:
    words = [sys.executable, "-c", CLIENT, node.address, str(port), source]
    done = subprocess.run([*client.inside, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def ip(host: Host, words: str) -> None:
    subprocess.run([*host.inside, "ip", *words.split()], check=True)


def test_programs_of_this_machine_and_strangers_of_other_networks_get_nothing() -> None:
    stranger = "10.88.0.5"
    with lan() as (here, other):
        ip(here, "link set lo up")
        ip(here, f"route add {stranger} via {other.address}")
        ip(other, f"addr add {stranger}/32 dev eth0")
        with serving(here):
            for port in (PORT, HTTP_PORT):
                assert ask(other, here, port, other.address) == "gets 18"
                assert ask(other, here, port, stranger) == "gets 0"
                assert ask(here, here, port, here.address) == "gets 0"
