"""Guests of one LAN, and guests on a bridge of their machine, in network namespaces."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.links.network import Host, fast_pair, why_not
from p2pcloopd.guest.system.addresses import MTU
from p2pcloopd.guest.system.kernel import SYSTEM_KERNEL, unpacked_kernel
from tests.support.boot_disks import stock_kernel
from tests.support.programs import Node, Nodes, descendants
from tests.support.waiting import BOUND, wait_until
from tools.tiny_image import build_tiny_image

_WHY_NOT = why_not()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(_WHY_NOT is not None, reason=f"no namespaces here: {_WHY_NOT}"),
]

PORT = 5001

SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    print("ready", flush=True)
    while True:
        with listener.accept()[0] as connection:
            connection.sendall(b"outside\\n")
"""


class Machine(NamedTuple):
    """What a guest runs on.

    Attributes:
        words: the options that choose it.
        card: what the guest calls its network card.
    """

    words: tuple[str | Path, ...]
    card: str


@pytest.fixture(params=["system", "unpacked", "qemu"])
def machine(request: pytest.FixtureRequest) -> Machine:
    """User-Mode Linux on both kernels, and QEMU."""
    if request.param == "qemu":
        stock_kernel()
        return Machine(("--vm", "qemu", "--mem", "128M"), "eth0")
    kernel = SYSTEM_KERNEL if request.param == "system" else unpacked_kernel()
    if request.param == "unpacked" and not kernel.exists():
        pytest.skip("there is no newer kernel: tools/get-uml-kernel unpacks one")
    return Machine(("--kernel", kernel), "vec0")


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Host, Host]]:
    with fast_pair() as hosts:
        yield hosts


@pytest.fixture
def node(nodes: Nodes, pair: tuple[Host, Host]) -> Node:
    return nodes.make(inside=pair[0].inside)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.img"
    build_tiny_image(path)
    return path


def words(image: Path, network: str, *more: str | Path) -> list[str | Path]:
    """The words of a `run`, up to its options."""
    return ["run", image, "--net", network, "--mem", "64M", *more]


@contextmanager
def serving(host: Host, address: str) -> Iterator[None]:
    """A server on a host, while the context lasts."""
    argv = [*host.inside, sys.executable, "-c", SERVER, address, str(PORT)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield
        finally:
            server.kill()


CLIENT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 100) as connection:
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(100):
            sys.stdout.write(data.decode())
except ConnectionResetError:
    sys.stdout.write("refused")
"""


def hears(host: Host, address: str, port: int) -> bytes:
    """What is heard at a port from a host."""
    argv = [*host.inside, sys.executable, "-c", CLIENT, address, str(port)]
    return subprocess.run(argv, capture_output=True, timeout=BOUND, check=True).stdout


SAYS = f"nc -ll -p {PORT} -e cat /proc/sys/kernel/ostype & echo ready; cat"

ASKS = """
    nc -w 100 web.lan {port} </dev/null
    nc -w 100 {far} {port} </dev/null
    for address in 10.0.2.2 127.0.0.1 10.88.0.1 {near}; do
        if nc -w 2 $address {port} </dev/null >/dev/null 2>&1; then echo reached $address; fi
    done
    printf '#!/bin/sh\\nenv\\n' >/tmp/told
    chmod 755 /tmp/told
    udhcpc -f -n -q -t 30 -i {card} -s /tmp/told 2>/dev/null >/tmp/lease
    grep -E '^(ip|router|dns|domain|mtu)=' /tmp/lease | sort
    cat /sys/class/net/{card}/mtu
"""


def test_guests_find_each_other_and_the_outside_but_not_this_machine(
    node: Node, image: Path, machine: Machine, pair: tuple[Host, Host]
) -> None:
    near, far = pair
    asks = ASKS.format(port=PORT, near=near.address, far=far.address, card=machine.card)
    opened = ("--port", f"0.0.0.0:8080:{PORT}", "--port", "8081:9")
    web = words(image, "lan", "--name", "web", *machine.words, *opened)
    with (
        serving(far, far.address),
        serving(near, "0.0.0.0"),
        node.started(*web, "--", "sh", "-c", SAYS, stdin=subprocess.PIPE) as guest,
    ):
        assert guest.stdout is not None
        assert guest.stdout.readline() == "ready\n"
        [shown] = node.json("ps")["guests"]
        assert (shown["name"], shown["network"], shown["address"]) == ("web", "lan", "10.88.0.2")
        said = node.run(*words(image, "lan", *machine.words), "--", "sh", "-c", asks).out
        assert [hears(near, "127.0.0.1", 8080), hears(far, near.address, 8080)] == [b"Linux\n"] * 2
        assert hears(near, "127.0.0.1", 8081) == b"refused"  # nothing listens in the guest
        guest.communicate(timeout=BOUND)
    lease = ["dns=10.88.0.1", "domain=lan", "ip=10.88.0.3", "router=10.88.0.1"]
    assert said.splitlines() == ["Linux", "outside", *lease, str(MTU)]


def test_a_lan_outlives_the_guest_that_made_it(node: Node, image: Path) -> None:
    """It is killed, with all that it started."""
    first = words(image, "lan:class", "--name", "first")
    second = words(image, "lan:class", "--name", "second")
    script = f"{SAYS}; ping -c 1 -w 100 10.88.0.1 >/dev/null && nslookup second.lan"
    with node.started(*first, "--", "sh", "-c", SAYS, stdin=subprocess.PIPE) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
        with node.started(*second, "--", "sh", "-c", script, stdin=subprocess.PIPE) as two:
            assert two.stdout is not None
            assert two.stdout.readline() == "ready\n"
            for process in descendants(one.pid):
                process.kill()
            out, err = two.communicate(timeout=BOUND)
    assert (two.returncode, err) == (0, "")
    assert "Address: 10.88.0.3" in out


@pytest.fixture
def bridge(pair: tuple[Host, Host], tmp_path: Path) -> Iterator[Host]:
    """A host with a bridge br0, where a DHCP server of others answers."""
    host = pair[0]

    def ip(*arguments: str) -> None:
        subprocess.run([*host.inside, "ip", *arguments], check=True)

    ip("link", "add", "br0", "type", "bridge")
    ip("address", "add", "192.168.77.1/24", "dev", "br0")
    # A port as a network card would be.
    ip("link", "add", "port", "address", "06:00:00:00:00:01", "type", "veth", "peer", "far")
    ip("link", "set", "port", "master", "br0")
    ip("link", "set", "br0", "up")
    server = [*host.inside, "dnsmasq", "-k", "-C", "/dev/null", "--port=0", "--interface=br0"]
    server += ["--dhcp-range=192.168.77.10,192.168.77.19,1h", "--dhcp-option=6,192.168.77.9"]
    server += [f"--dhcp-leasefile={tmp_path / 'leases'}", "--user=root", "--log-facility=-"]
    server += ["--pid-file", "--bind-interfaces", "--no-ping"]
    with subprocess.Popen(server, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"started" in process.stderr.readline()
        try:
            yield host
        finally:
            process.kill()
            ip("link", "delete", "br0")
            ip("link", "delete", "port")


def links(host: Host, *which: str) -> str:
    """What a host says of these of its interfaces."""
    shown = [*host.inside, "ip", "-o", "link", "show", *which]
    return subprocess.run(shown, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_a_guest_on_a_bridge_has_an_address_of_that_network(
    node: Node, image: Path, machine: Machine, bridge: Host, tmp_path: Path
) -> None:
    show = f"ip -o {{}} show {machine.card}"
    script = f"{show.format('-4 address')}; ip route; cat /etc/resolv.conf; cat"
    script += f"; {show.format('link')}"
    run = words(image, "bridge:br0", "--name", "g1", *machine.words)
    leases = set[str]()
    for end in ("in order", "killed"):
        with node.started(*run, "--", "sh", "-c", script, stdin=subprocess.PIPE) as guest:
            assert guest.stdout is not None
            address = re.search(r"inet (192\.168\.77\.1\d)/24", guest.stdout.readline())
            assert address
            assert f"default via 192.168.77.1 dev {machine.card}" in guest.stdout.readline()
            guest.stdout.readline()
            assert guest.stdout.readline() == "nameserver 192.168.77.9\n"
            assert re.search("master br0 .* link/ether fe:", links(bridge, "type", "tun"))
            # The guest's own, which the DHCP server knows, is the same at each boot.
            leases |= {(tmp_path / "leases").read_text().split()[1]}
            assert "link/ether 06:00:00:00:00:01" in links(bridge, "br0")
            [shown] = node.json("ps")["guests"]
            assert (shown["network"], shown["address"]) == ("bridge:br0", address[1])
            if end == "killed":
                guest.send_signal(signal.SIGKILL)
            out, _ = guest.communicate(timeout=BOUND)
        wait_until(lambda: not links(bridge, "type", "tun"))
        assert ("link/ether 02:" in out) == (end == "in order")
    assert len(leases) == 1


def test_a_bridge_without_a_dhcp_server_leaves_the_guest_without_an_address(
    node: Node, image: Path, pair: tuple[Host, Host], tmp_path: Path
) -> None:
    inside, log = pair[0].inside, tmp_path / "console"
    subprocess.run([*inside, "ip", "link", "add", "br1", "type", "bridge"], check=True)
    subprocess.run([*inside, "ip", "link", "set", "br1", "up"], check=True)
    try:
        run = words(image, "bridge:br1", "--console", log)
        assert node.run(*run, "--", "sh", "-c", "ip -4 -o address show vec0").out == ""
    finally:
        subprocess.run([*inside, "ip", "link", "delete", "br1"], check=True)
    assert "no DHCP server answers" in log.read_text(errors="replace")


@pytest.mark.parametrize(
    ("options", "code", "says", "hint"),
    [
        (["bridge:br9"], 7, "no interface br9", "it has eth0"),
        (["bridge:eth0"], 10, "the interface eth0 is no bridge", "--net bridge:br0"),
        (["bridge:"], 2, "cannot be the name of an interface", "ip link show type bridge"),
        (["lan:UP"], 2, "'UP' cannot be the name of a LAN", "a to z"),
        (["ether"], 2, "--net 'ether' is no network", "give none, user, lan"),
        (["none", "--port", "2222:22"], 2, "--port needs", "--net user"),
        (["lan", "--port", "2222:22/udp"], 2, "one of TCP", "--net user"),
    ],
)
def test_a_network_that_cannot_be_changes_nothing(
    node: Node, image: Path, options: list[str], code: int, says: str, hint: str
) -> None:
    said = node.run("run", image, "--net", *options, "--", "true", code=code).err
    assert says in said
    assert hint in said
    assert not node.root.exists()
