"""Datagrams that are longer than a link outside: from the guest's end of the wire, over a link with
an MTU of 1500, and back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.links.network import fast_pair, why_not
from p2pcloopd.guest.system.addresses import MTU

_WHY_NOT = why_not()
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(_WHY_NOT is not None, reason=f"no namespaces here: {_WHY_NOT}"),
]

CHECKOUT = Path(__file__).parents[2]
PORT = 7000

ECHO = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind((sys.argv[1], int(sys.argv[2])))
    print("ready", flush=True)
    while True:
        data, client = sock.recvfrom(65536)
        sock.sendto(data[::-1], client)
        sock.sendto(data[::-1] * 3, client)
"""

INSIDE = """
import json, random, socket, sys
from pathlib import Path
import trio
from tests.guest.test_network import open_wire, udp_datagram

scratch, address, port, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

async def datagram(wire):
    # The frames' lengths, and what the datagram of their fragments holds.
    lengths, parts, more = [], {}, True
    while more:
        frame = await wire.sock.recv(65536)
        if frame[12:14] == b"\\x08\\x00":
            lengths.append(len(frame) - 14)
            flags = int.from_bytes(frame[20:22], "big")
            more = bool(flags & 0x2000)
            parts[flags & 0x1FFF] = frame[34:]
    return lengths, b"".join(parts[at] for at in sorted(parts))[8:]

async def main():
    data = random.Random(2).randbytes(size)
    async with open_wire(Path(scratch)) as wire:
        await wire.send(address, socket.IPPROTO_UDP, udp_datagram(40000, port, data))
        (one, short), (many, long) = await datagram(wire), await datagram(wire)
    right = short == data[::-1], long == data[::-1] * 3
    print(json.dumps([one, many, right]))

trio.run(main)
"""


def test_they_arrive_and_so_do_answers(tmp_path: Path) -> None:
    size = 12_000
    with fast_pair() as (near, far):
        argv = [*far.inside, sys.executable, "-c", ECHO, far.address, str(PORT)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as echo:
            try:
                assert echo.stdout is not None
                assert echo.stdout.readline() == b"ready\n"
                words = [str(tmp_path), far.address, str(PORT), str(size)]
                done = subprocess.run(
                    [*near.inside, sys.executable, "-c", INSIDE, *words],
                    cwd=CHECKOUT, stdout=subprocess.PIPE, timeout=120, check=True,
                )  # fmt: skip
            finally:
                echo.kill()
    one, many, right = json.loads(done.stdout)
    assert right == [True, True]
    assert one == [20 + 8 + size]
    assert len(many) == 3
    assert max(many) <= MTU
