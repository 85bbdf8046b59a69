"""Hosts on slow lines: a network namespace each, joined in one more, all of this machine.

    host: eth0 ──veth── bridge "near" ──tap── delay.c ──tap── bridge "far" ──veth── eth0 :host

Both ends of each veth have a tc-tbf(8), so that a host sends and receives at its link's rate. No
namespace has a way out of the machine. They belong to processes, not to names, so that nothing is
left of them however this program ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.harness import BenchError
from bench.links.link import Link
from bench.processes import run

_SUBNET = "10.77.0"
_PROGRAMS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "ethtool": "ethtool",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "gcc": "gcc",
}
_OFFLOADS = ("tso", "gso", "gro")
# No neighbour discovery between measurements; each connection meets the link as if it were new.
_SETTINGS = {"ipv6/conf/default/disable_ipv6": 1, "ipv4/tcp_no_metrics_save": 1}
_LIMIT = 10.0


class Traffic(NamedTuple):
    """Bytes that crossed a host's interface, Ethernet headers included."""

    received: int
    sent: int

    def since(self, before: Traffic) -> Traffic:
        """The bytes that crossed after `before`."""
        return Traffic(self.received - before.received, self.sent - before.sent)


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with one interface, eth0.

    Attributes:
        pid: the process whose network and mount namespaces these are.
    """

    name: str
    address: str
    pid: int

    @property
    def inside(self) -> list[str]:
        """Words before a command that runs it there; its paths must be absolute."""
        return _inside(self.pid)

    def traffic(self) -> Traffic:
        """The interface's counters."""
        return parse_traffic(Path(f"/proc/{self.pid}/net/dev").read_text(), "eth0")

    def listens(self, port: int) -> bool:
        """Whether a process listens on a TCP port there."""
        return is_listening(Path(f"/proc/{self.pid}/net/tcp").read_text(), port)


def parse_traffic(table: str, interface: str) -> Traffic:
    """Read an interface's line of /proc/net/dev (proc(5)).

    Raises:
        BenchError: there is no such interface.
    """
    for line in table.splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            numbers = counters.split()
            return Traffic(int(numbers[0]), int(numbers[8]))
    raise BenchError(f"the namespace has no interface {interface}")


def is_listening(table: str, port: int) -> bool:
    """Whether /proc/net/tcp (proc(5)) lists a listening socket on a port."""
    rows = (line.split() for line in table.splitlines()[1:])
    return any(row[3] == "0A" and int(row[1].partition(":")[2], 16) == port for row in rows)


def why_not() -> str | None:
    """Why this machine or user cannot make namespaces; None if they can be made."""
    missing = [f"{name} (package {p})" for name, p in _PROGRAMS.items() if not shutil.which(name)]
    if missing:
        return f"it lacks {', '.join(missing)}: run tools/setup"
    if os.geteuid() != 0:
        return "only root may make network namespaces with shaped links: run it as root"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return f"the kernel refuses network namespaces: {done.stderr!r}" if done.returncode else None


@contextmanager
def network(link: Link, names: Sequence[str], work: Path) -> Iterator[list[Host]]:
    """Join hosts by links of one kind, while the context lasts.

    Args:
        names: of the hosts. The link's delay lies between the first one and all others.
        work: a directory, for the compiled delay.c.

    Raises:
        BenchError: something refused; the message has its words.
    """
    with ExitStack() as stack:
        middle = stack.enter_context(_namespace())
        hosts = [
            Host(name, f"{_SUBNET}.{number}", stack.enter_context(_namespace()))
            for number, name in enumerate(names, 1)
        ]
        far = "far" if link.delay else "near"
        _ip(middle, *_bridge("near"), *(_bridge("far") if link.delay else ()))
        for number, host in enumerate(hosts):
            _join(host, f"h{number}", link, middle, "near" if number else far)
        if link.delay:
            stack.enter_context(_delay(link.delay, middle, work))
        yield hosts


@contextmanager
def fast_pair() -> Iterator[tuple[Host, Host]]:
    """Two hosts with one veth between them, which nothing slows down: each is the other's way to
    the outside.

    Raises:
        BenchError: something refused; the message has its words.
    """
    with _namespace() as one, _namespace() as two:
        hosts = Host("one", f"{_SUBNET}.1", one), Host("two", f"{_SUBNET}.2", two)
        _ip(one, f"link add eth0 type veth peer name eth0 netns {two}")
        for host in hosts:
            address = f"addr add {host.address}/24 dev eth0"
            _ip(host.pid, "link set lo up", address, "link set eth0 up")
        for host, other in (hosts, hosts[::-1]):
            _ip(host.pid, f"route add default via {other.address}")
        yield hosts


@contextmanager
def behind(host: Host, bridge: str, address: str) -> Iterator[Host]:
    """One more host, at a bridge of another one; nothing slows it down.

    Args:
        address: of its eth0, in a network of 256 addresses.
    """
    with _namespace() as pid:
        _ip(
            host.pid,
            f"link add behind type veth peer name eth0 netns {pid}",
            f"link set behind master {bridge} up",
        )
        _ip(pid, "link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up")
        yield Host("behind", address, pid)


@contextmanager
def _namespace() -> Iterator[int]:
    """The id of a process with a network and a mount namespace of its own."""
    dies_with_us = ("setpriv", "--pdeathsig", "KILL")
    holder = subprocess.Popen(
        [*dies_with_us, "unshare", "--net", "--mount", "sleep", "infinity"],
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _LIMIT
        while Path(f"/proc/{holder.pid}/comm").read_text() != "sleep\n":
            if holder.poll() is not None or time.monotonic() > deadline:
                raise BenchError("unshare --net --mount made no namespace")
            time.sleep(0.002)
        settings = "; ".join(f"echo {value} >/proc/sys/net/{k}" for k, value in _SETTINGS.items())
        # Else what `p2pcloop mount` shows now would be mounted here after its `umount`, too.
        unmount = "umount --all --lazy --types fuse.p2pcloop"
        run([*_inside(holder.pid), "sh", "-ec", f"{settings}; {unmount}"])
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def _join(host: Host, port: str, link: Link, middle: int, bridge: str) -> None:
    """Lay a host's veth to a bridge, both ends shaped."""
    _ip(
        middle,
        f"link add {port} type veth peer name eth0 netns {host.pid}",
        f"link set {port} master {bridge} up",
    )
    _ip(
        host.pid,
        "link set lo up",
        f"addr add {host.address}/24 dev eth0",
        "link set eth0 up",
    )
    shape = f"tbf rate {link.rate:.0f}bps burst {link.burst} latency {link.queue * 1000:.0f}ms"
    for pid, device in ((middle, port), (host.pid, "eth0")):
        off = [word for offload in _OFFLOADS for word in (offload, "off")]
        run([*_inside(pid), "ethtool", "-K", device, *off])
        run([*_inside(pid), "tc", "qdisc", "add", "dev", device, "root", *shape.split()])


@contextmanager
def _delay(seconds: float, middle: int, work: Path) -> Iterator[None]:
    """Join the two bridges by delay.c, half the round trip in each direction."""
    program = work / "delay"
    run(["gcc", "-O2", "-Wall", "-o", program, Path(__file__).with_name("delay.c")])
    taps = {"t-near": "near", "t-far": "far"}
    for tap, bridge in taps.items():
        _ip(middle, f"tuntap add dev {tap} mode tap", f"link set {tap} master {bridge} up")
    process = subprocess.Popen(
        [*_inside(middle), program, *taps, f"{seconds * 5e5:.0f}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise BenchError("delay.c did not start; its messages are above")
        yield
    finally:
        process.kill()
        process.communicate()


def _bridge(name: str) -> tuple[str, str]:
    # Snooping would ask questions of its own.
    return f"link add {name} type bridge mcast_snooping 0", f"link set {name} up"


def _ip(pid: int, *commands: str) -> None:
    for command in commands:
        run([*_inside(pid), "ip", *command.split()])


def _inside(pid: int) -> list[str]:
    return ["nsenter", "--net", "--mount", f"--target={pid}", "--"]
