"""`p2pcloop suspend` and `resume`: a guest goes on where it was, here and elsewhere."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.links.network import why_not
from p2pcloop.formats.overlay import Overlay
from tests.support.boot_disks import stock_kernel
from tests.support.ports import free_port
from tests.support.programs import EXEC, GUEST_OPTIONS, Node, Nodes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.e2e

WHY_NO_LAN = why_not()

QEMU = ("--vm", "qemu", *GUEST_OPTIONS)


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    stock_kernel()


@pytest.fixture(scope="module")
def node(cloop: Path) -> Iterator[Node]:
    with Nodes() as nodes:
        node = nodes.make()
        node.seed(cloop, "tiny")
        yield node


def said(node: Node, guest: str, script: str) -> str:
    return node.run(*EXEC, guest, "--", "sh", "-c", script).out


def state_of(node: Node, guest: str) -> str:
    return next(
        str(each["reason"]) for each in node.json("ps", "--all")["guests"] if each["name"] == guest
    )


@pytest.fixture(scope="module")
def suspended(node: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `suspend` says of the guest g1, which had an overlay and a network."""
    overlay = tmp_path_factory.mktemp("overlay") / "mine.delta"
    options = ("--overlay", overlay, "--net", "user", "--name", "g1", "--detach")
    node.run("boot", "tiny", *QEMU, *options)
    said(node, "g1", "echo in memory >/dev/note; echo on disk >/root/note")
    # A command of `exec` would lose its streams.
    with node.started("exec", "g1", "--", "sh", "-c", "echo begun; sleep 1000") as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "begun\n"
        assert "1 command of" in node.run("suspend", "g1", code=6).err
    said(node, "g1", "while busybox pidof sleep >/dev/null; do :; done")
    made = node.json("suspend", "g1")
    assert (made["version"], made["base"], made["runs"]) == (
        1,
        node.json("info", "tiny")["name"],
        False,
    )
    assert "#key=" in made["link"], "nobody else can read it"
    assert state_of(node, "g1") == "suspended"
    return made | {"overlay": overlay}


def test_a_guest_goes_on_elsewhere_and_comes_back(
    node: Node, nodes: Nodes, suspended: dict[str, Any]
) -> None:
    made = suspended
    other = nodes.make()
    key = made["name"].partition("/")[0]
    refused = other.run("resume", made["link"], code=2).err
    assert f"--trust {key}" in refused
    begun = int(time.time())
    other.run("resume", made["link"], "--trust", key, "--name", "g2", "--detach")
    assert said(other, "g2", "cat /dev/note /root/note") == "in memory\non disk\n"
    wait_for_clock(other, "g2", begun)
    assert said(other, "g2", "hostname; cat /sys/class/net/eth0/carrier") == "g2\n0\n"

    # What it changed there, and no more, is the next state; and that goes on here.
    said(other, "g2", "echo changed >/root/note")
    back = other.json("suspend", "g2")
    assert back["base"] == made["name"]
    assert back["stored"] < made["stored"] / 2
    node.run("key", "trust", back["name"])
    node.run("resume", back["link"], "--name", "g3", "--detach")
    assert said(node, "g3", "cat /dev/note /root/note") == "in memory\nchanged\n"
    node.run("stop", "g3", "--time", "0")


def test_by_its_name_a_guest_goes_on_with_a_new_overlay(
    node: Node, suspended: dict[str, Any]
) -> None:
    """It lies beside the old one, and `start` boots with it later."""
    node.run("start", "g1")
    told = said(
        node, "g1", "until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do :; done; ip route"
    )
    assert "default via 10.0.2.2 dev eth0" in told
    assert said(node, "g1", "cat /root/note; echo later >/root/note; sync") == "on disk\n"
    node.run("stop", "g1")
    assert Overlay.inspect(suspended["overlay"].with_name("mine-2.delta")).data_blocks
    node.run("start", "g1")
    assert said(node, "g1", "cat /root/note; ls /dev/note 2>&1 || true").startswith("later\n")
    node.run("stop", "g1", "--time", "0")


def children(pid: int) -> list[int]:
    """The oldest first."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(WHY_NO_LAN is not None, reason=f"no namespaces here: {WHY_NO_LAN}")
def test_two_who_go_on_with_one_state_are_two_machines_of_a_lan(
    node: Node, suspended: dict[str, Any]
) -> None:
    """Each has the card of its place there, with an address and a name of its own."""
    cards = []
    for name in ("l1", "l2"):
        options = ("--at", "1", "--net", "lan", "--name", name, "--detach")
        begun = int(time.time())
        node.run("resume", suspended["name"], *options)
        wait_for_clock(node, name, begun)
        told = "cat /sys/class/net/eth0/address; hostname; ip -4 address show eth0 | grep inet"
        cards += said(node, name, told).splitlines()
    assert len(set(cards)) == len(cards) == 6
    said(node, "l1", "until ping -c 1 -w 1 l2.lan; do sleep 0.1; done")
    node.run("stop", "l1", "l2", "--time", "0")


def test_a_guest_goes_on_whatever_serves_its_memory_and_is_killed(
    nodes: Nodes, suspended: dict[str, Any]
) -> None:
    """Nothing of the state is here: so pages arrive, and are pushed, while that is killed."""
    other = nodes.make()
    trusted = ("--trust", suspended["name"].partition("/")[0])
    other.run("resume", suspended["link"], *trusted, "--name", "g2", "--detach")
    [guest] = other.json("ps")["guests"]
    parent = next(each for each in children(guest["pid"]) if len(children(each)) == 2)
    for _ in range(3):
        wait_until(lambda: len(children(parent)) == 2)
        os.kill(children(parent)[-1], signal.SIGKILL)  # it serves; the first one pushes
        assert said(other, "g2", "cat /dev/note /root/note") == "in memory\non disk\n"
    os.kill(children(parent)[0], signal.SIGKILL)
    assert said(other, "g2", "cat /bin/busybox | wc -c").strip().isdigit()
    other.run("stop", "g2", "--time", "0")


def wait_for_clock(node: Node, guest: str, begun: int) -> None:
    """Return once it is told that the clock is set; then it is. The guest has gone on since
    `begun`, by the clock of this machine."""

    def is_told() -> bool:
        return "its clock was set" in node.run("logs", guest).out

    wait_until(is_told, "that the clock is set")
    assert begun <= int(said(node, guest, "date +%s")) <= time.time() + 1


ASKS = """
import socket, sys, time

while True:
    try:
        # It ends at once as long as nothing in the guest answers.
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60) as connection:
            if answer := connection.recv(100):
                break
    except OSError:
        pass
    time.sleep(0.1)
with open(sys.argv[2], "ab") as file:
    file.write(answer)
"""


def test_a_state_is_kept_of_a_guest_that_runs_on_and_then_used_as_a_reader_will(
    node: Node, tmp_path: Path
) -> None:
    port = free_port()
    network = ("--net", "user", "--port", f"{port}:22")
    node.run("boot", "tiny", *QEMU, *network, "--name", "k1", "--detach")
    listens = "nc -ll -p 22 -e cat /dev/note >/dev/null 2>&1 &"
    said(node, "k1", f"echo 1 >/dev/note; {listens}")
    publish = ("suspend", "k1", "--publish", "kept")
    made = node.json(*publish, "--keep-running", "-m", "a moment", "--no-rehearsal")
    assert (made["rehearsed"], made["profile"]) == (None, False)
    assert "#key=" not in made["link"]
    assert said(node, "k1", "cat /dev/note; echo 2 >/dev/note") == "1\n"
    asks, answers = tmp_path / "asks.py", tmp_path / "answers"
    asks.write_text(ASKS)
    use = shlex.join([sys.executable, *map(str, (asks, port, answers))])
    second = node.json(*publish, "--rehearse", use)
    assert answers.read_text() == "2\n2\n", "it was used in both rehearsals"
    # Once as it is, and once more with what it needed first when it was tried.
    assert (second["version"], second["base"], second["profile"]) == (3, made["name"], True)
    assert 0 < second["rehearsed"] < made["stored"]
    assert second["stored"] < made["stored"] / 2
    node.run("resume", "kept", "--at", "1", "--name", "k2", "--detach")
    assert said(node, "k2", "cat /dev/note") == "1\n"
    node.run("stop", "k2", "--time", "0")


def test_what_cannot_be_suspended_or_resumed_says_why(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    node.run("boot", "tiny", *GUEST_OPTIONS, "--name", "u1", "--detach")
    assert "User-Mode Linux" in node.run("suspend", "u1", code=2).err
    assert said(node, "u1", "echo runs on") == "runs on\n"
    node.run("stop", "u1", "--time", "0")
    node.run("boot", cloop, *GUEST_OPTIONS, "--name", "f1", "--detach")
    assert "seed" in node.run("suspend", "f1", code=2).err
    node.run("stop", "f1", "--time", "0")
    assert "is an image, and no state" in node.run("resume", "tiny", code=2).err
    (tmp_path / "old.delta").touch()
    refused = node.run("resume", "tiny", "--overlay", tmp_path / "old.delta", code=2)
    assert "exists" in refused.err
