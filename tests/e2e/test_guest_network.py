"""The network of a guest, to a machine that is not this one: a network namespace."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.links.network import Host, fast_pair, why_not
from p2pcloopd.guest.addresses import MTU
from p2pcloopd.guest.kernel import SYSTEM_KERNEL, unpacked_kernel
from tests.support.programs import Node, Nodes
from tools.tiny_image import build_tiny_image

_WHY_NOT = why_not()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(_WHY_NOT is not None, reason=f"no namespaces here: {_WHY_NOT}"),
]

TAKES, GIVES = 5001, 5002
SIZE = 8_000_000
FLOWS = 2

SERVER = """
import hashlib, random, socket, sys, threading
address, size = sys.argv[1], int(sys.argv[2])
def take(connection):
    digest, received = hashlib.sha256(), b"x"
    while received:
        received = connection.recv(1 << 18)
        digest.update(received)
    connection.sendall(digest.hexdigest().encode())
def give(connection):
    connection.sendall(random.Random(1).randbytes(size))
def answer(connection, how):
    with connection:
        how(connection)
def serve(listener, how):
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0], how)).start()
for port, how in zip(map(int, sys.argv[3:]), (take, give)):
    listener = socket.create_server((address, port), backlog=50)
    threading.Thread(target=serve, args=(listener, how)).start()
print("ready", flush=True)
"""


@pytest.fixture(params=["system", "unpacked"])
def kernel(request: pytest.FixtureRequest) -> Path:
    if request.param == "system":
        return SYSTEM_KERNEL
    if not unpacked_kernel().exists():
        pytest.skip("there is no newer kernel: tools/get-uml-kernel unpacks one")
    return unpacked_kernel()


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Host, Host]]:
    with fast_pair() as hosts:
        yield hosts


@pytest.fixture
def node(nodes: Nodes, pair: tuple[Host, Host]) -> Node:
    return nodes.make(inside=pair[0].inside)


@pytest.fixture(scope="module")
def outside(pair: tuple[Host, Host]) -> Iterator[Host]:
    """A host outside, whose server hashes what it is sent, and sends the same bytes each time."""
    host = pair[1]
    argv = [*host.inside, sys.executable, "-c", SERVER, host.address, str(SIZE)]
    with subprocess.Popen([*argv, str(TAKES), str(GIVES)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == b"ready\n"
            yield host
        finally:
            server.kill()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.img"
    build_tiny_image(path)
    return path


def in_guest(node: Node, image: Path, kernel: Path, script: str) -> list[str]:
    """The words that a script prints in a guest with a network."""
    words = ("--net", "user", "--mem", "64M", "--kernel", kernel, "--", "sh", "-ec", script)
    return node.run("run", image, *words).out.split()


def test_data_arrives_whole_both_ways_at_once(
    node: Node, image: Path, kernel: Path, outside: Host
) -> None:
    sent = "".join(f"{n}\n" for n in range(1, 300_001)).encode()
    given = random.Random(1).randbytes(SIZE)
    flows = f"""
        cd /tmp
        for flow in {" ".join(map(str, range(FLOWS)))}; do
            seq 1 300000 | nc {outside.address} {TAKES} >sent$flow &
            nc {outside.address} {GIVES} </dev/null | sha256sum | cut -d' ' -f1 >got$flow &
        done
        wait
        for flow in sent* got*; do cat $flow; echo; done
    """
    hashes = [hashlib.sha256(data).hexdigest() for data in (given, sent)]
    assert in_guest(node, image, kernel, flows) == [hashes[1]] * FLOWS + [hashes[0]] * FLOWS


def test_the_card_has_its_mtu_and_a_dhcp_client_leaves_it(
    node: Node, image: Path, kernel: Path
) -> None:
    script = r"""
        cat /sys/class/net/vec0/mtu
        printf '#!/bin/sh\nenv\n' >/tmp/told
        chmod 755 /tmp/told
        udhcpc -f -n -q -i vec0 -s /tmp/told 2>/dev/null | grep -E '^(ip|router|dns|mtu)='
        cat /sys/class/net/vec0/mtu
    """
    said = in_guest(node, image, kernel, script)
    assert said[0] == said[-1] == str(MTU)
    assert set(said[1:-1]) == {"ip=10.0.2.15", "router=10.0.2.2", "dns=10.0.2.3"}
