"""The network of a guest, to a machine that is not this one: a network namespace."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.links.network import Host, fast_pair, why_not
from p2pcloopd.guest.system.addresses import MTU
from p2pcloopd.guest.system.kernel import SYSTEM_KERNEL, unpacked_kernel
from tests.support.programs import Node, Nodes, tool
from tests.support.waiting import BOUND
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
        udhcpc -f -n -q -t 30 -i vec0 -s /tmp/told 2>/dev/null | grep -E '^(ip|router|dns|mtu)='
        cat /sys/class/net/vec0/mtu
    """
    said = in_guest(node, image, kernel, script)
    assert said[0] == said[-1] == str(MTU)
    assert set(said[1:-1]) == {"ip=10.0.2.15", "router=10.0.2.2", "dns=10.0.2.3"}


CLIENT = """
import socket, sys, time
deadline = time.monotonic() + 100
while time.monotonic() < deadline:
    try:
        # It ends at once as long as nothing in the guest listens.
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as connection:
            if answer := connection.recv(100):
                print(answer.decode().strip())
                break
    except OSError:
        pass
    time.sleep(0.1)
"""

LISTENS = """
    while true; do nc -l -p 22 -e cat /proc/sys/kernel/ostype; done &
    for address in 10.0.2.2 127.0.0.1 {near}; do
        if nc -w 3 $address {port} </dev/null >/dev/null 2>&1; then echo reached $address; fi
    done
    if nc -w 100 {far} {port} </dev/null >/dev/null 2>&1; then echo reached {far}; fi
    echo done
    cat
"""


def test_ports_lead_into_the_guest_and_nothing_leads_back(
    node: Node, image: Path, kernel: Path, pair: tuple[Host, Host], outside: Host
) -> None:
    near = pair[0]
    script = LISTENS.format(near=near.address, far=outside.address, port=TAKES)
    places = [(near, "127.0.0.1"), (near, near.address), (outside, near.address)]
    ports = ["127.0.0.1:2222:22", f"{near.address}:2222:22", "0.0.0.0:3333:22"]
    words: list[str | Path] = ["--net", "user", "--kernel", kernel]
    words += [f"--port={port}" for port in ports]
    command: list[str | Path] = ["run", image, *words, "--", "sh", "-c", script]
    with (
        listening(near, "0.0.0.0", TAKES),
        node.started(*command, stdin=subprocess.PIPE) as guest,
    ):
        assert guest.stdout is not None
        # What listens on the node's machine cannot be reached, what is outside can.
        assert guest.stdout.readline() == f"reached {outside.address}\n"
        assert guest.stdout.readline() == "done\n"
        for host, address in places:
            assert answer_at(host, address, 2222) == "Linux\n"
        assert answer_at(outside, near.address, 3333) == "Linux\n"
        out, err = guest.communicate(timeout=BOUND)
    assert (guest.returncode, out) == (0, "")
    assert "other machines can reach the guest by 0.0.0.0:3333/tcp" in err


def test_only_opened_ports_of_this_machine_are_reached(
    node: Node, image: Path, kernel: Path, pair: tuple[Host, Host]
) -> None:
    near = pair[0].address
    script = f"""
        reach() {{ nc -w $1 $2 $3 </dev/null >/dev/null 2>&1 && echo $2:$3; }}
        reach 100 10.0.2.2 {TAKES}
        reach 3 10.0.2.2 {GIVES}
        reach 3 {near} {TAKES}
        reach 100 {near} {GIVES}
        reach 3 127.0.0.1 {TAKES}
        reach 3 127.0.0.1 {GIVES}
        true
    """
    opened = ("--open", str(TAKES), "--open", f"{near}:{GIVES}", "--kernel", kernel)
    with listening(pair[0], "0.0.0.0", TAKES), listening(pair[0], "0.0.0.0", GIVES):
        said = node.run("run", image, "--net", "user", *opened, "--", "sh", "-c", script).out
    assert said.split() == [f"10.0.2.2:{TAKES}", f"{near}:{GIVES}"]


def test_a_port_is_opened_by_an_address_of_this_machine_with_a_network(
    node: Node, image: Path
) -> None:
    for words, says, hint in (
        (["--open", "80"], "--open needs a guest with the network `user`", "--net user"),
        (["--net", "lan", "--open", "80"], "--open needs a guest with the network", "--net user"),
        (["--net", "user", "--open", "192.0.2.7:80"], "this machine does not have", "3128"),
    ):
        said = node.run("run", image, *words, "--", "true", code=2).err
        assert says in said
        assert hint in said
    many = [word for port in range(1, 2201) for word in ("--open", str(port))]
    said = node.run("run", image, "--net", "user", *many, "--", "true", code=10).err
    assert "has no room for 2200 opened ports" in said
    assert not node.root.exists()


def answer_at(host: Host, address: str, port: int) -> str:
    """What a client on a host is answered by a forwarded port."""
    argv = [*host.inside, sys.executable, "-c", CLIENT, address, str(port)]
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=BOUND, check=True).stdout


@contextmanager
def listening(host: Host, address: str, port: int) -> Iterator[None]:
    """A server on a host, while the context lasts."""
    argv = [*host.inside, sys.executable, "-c", SERVER, address, "1", str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield
        finally:
            server.kill()


def test_a_port_in_use_stops_the_command_before_anything_starts(
    node: Node, image: Path, pair: tuple[Host, Host]
) -> None:
    with listening(pair[0], "127.0.0.1", 2222):
        words = ("--net", "user", "--port", "2222:22", "--", "true")
        said = node.run("run", image, *words, code=6).err
    assert "port 2222 of 127.0.0.1 (tcp) cannot lead into the guest: it is in use" in said
    assert not node.root.exists()


def test_a_port_needs_a_network(node: Node, image: Path) -> None:
    said = node.run("run", image, "--port", "2222:22", "--", "true", code=2).err
    assert "hint: give `--net user` with it" in said


def run_words(image: Path, overlay: Path, kernel: Path) -> list[str | Path]:
    """The words of `run` with an overlay, up to its command."""
    return ["run", image, "--overlay", overlay, "--kernel", kernel, "--mem", "64M"]


def test_the_name_server_is_there_for_this_boot_alone(
    node: Node, image: Path, kernel: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "mine.delta"
    words = run_words(image, overlay, kernel)
    shown = ["--", "sh", "-c", "wc -c </etc/resolv.conf; cat /etc/resolv.conf"]
    assert node.run(*words, "--net", "user", *shown).out == "20\nnameserver 10.0.2.3\n"
    # It was mounted: the overlay has an empty file, which is the same as none.
    assert node.run(*words, *shown).out == "0\n"


def test_a_link_into_run_leads_to_the_name_server(
    node: Node, image: Path, kernel: Path, tmp_path: Path
) -> None:
    linked, overlay = tmp_path / "linked.img", tmp_path / "mine.delta"
    shutil.copyfile(image, linked)
    link = "symlink /etc/resolv.conf ../run/systemd/resolve/stub-resolv.conf"
    tool("debugfs", "-w", "-R", link, linked)
    words = run_words(linked, overlay, kernel)
    shown = ["--", "sh", "-c", "cat /etc/resolv.conf; ls /run; readlink /etc/resolv.conf"]
    target = "../run/systemd/resolve/stub-resolv.conf\n"
    said = node.run(*words, "--net", "user", *shown).out
    assert said == f"nameserver 10.0.2.3\nlock\nsystemd\n{target}"
    assert node.run(*words, *shown).out == f"lock\n{target}"
