"""`tools/bench netboot`: bare machines that boot over the network, one alone and many at once.

Three things are measured.

- One machine (QEMU, TCG), from power on to its login: by `p2pcloop netboot`, and with the same
  kernel, first root and image from QEMU's `-kernel` and a disk of its own. The time until the
  kernel's first line is that of firmware and iPXE; what it is longer over the network is left out.
- A recorded boot, replayed by one client and by many at once from a node that starts with nothing.
  The node is behind a slow line; the clients are on its LAN. So many machines would be too much for
  the processors, and these would be measured.
- So many real machines at once, from the same kind of node: the bytes that its line carried. Their
  time is shown and not judged.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import socket
import statistics
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from bench.figure import Bar, Figure, Quantity
from bench.guests import LOGIN, boot_initramfs
from bench.harness import Bench, BenchError
from bench.links import suite as words
from bench.links.bare_machines import (
    BRIDGE,
    Firmware,
    Machine,
    dhcp_server,
    lan,
    switched_on,
    why_not,
)
from bench.links.control import doubts_of_usage
from bench.links.least import recorded_boot
from bench.links.link import Link
from bench.links.network import Host, behind, network
from bench.links.ours import publish_optimised
from bench.links.rig import Rig, node_on
from bench.links.suite import Suite, run_suite
from bench.links.usage import Meter, Usage
from bench.nbd_reader import NbdReader
from bench.processes import Argument, run, serving
from bench.replay import replay
from bench.trace import Read
from p2pcloopd.guest.system.initramfs import Part
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel
from p2pcloopd.netboot.machine_root import READ_AHEAD_KB, build_machine_root

LIMIT = 1200.0
PORT = 10809
MAX_MACHINES = 32
_LAN_ADDRESS, _CLIENT_ADDRESS = "192.168.99.1", "192.168.99.2"
_RANGE = "192.168.99.10,192.168.99.60"
_WORDS = "console=ttyS0"
_FIRST_LINE = "Linux version"
_NETBOOT, _LOCAL, _FIRMWARE = "p2pcloop netboot", "a local disk", "until the kernel's first line"
_NEW_NET = 0x40000000  # linux/sched.h


@dataclass(frozen=True, slots=True)
class Started:
    """One machine's start.

    Attributes:
        kernel: seconds from power on to the first line of its kernel.
        login: seconds from power on to its login.
    """

    kernel: float
    login: float


@dataclass(frozen=True, slots=True)
class Crowd:
    """Clients of one node.

    Attributes:
        last: seconds until the last one was done.
        sent: bytes that the seeder sent meanwhile.
        usage: of the processors meanwhile; None if it is unknown.
    """

    last: float
    sent: int
    usage: Usage | None


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    about = "Let bare machines boot over the network."
    parser = words.parser("netboot", about, rounds=3, link_of="the node")
    parser.add_argument(
        "--machines",
        type=words.within(2, MAX_MACHINES, int),
        default=8,
        metavar="N",
        help="how many boot at once (default 8); one alone is always measured",
    )
    parser.add_argument(
        "--firmware", choices=["bios", "uefi"], default="bios", help="of the machines"
    )
    parser.add_argument(
        "--no-real", action="store_true", help="no real machines at once: they take minutes"
    )
    words.add_recorded(parser)
    options = parser.parse_args(args)
    if options.image:
        parser.error("the tiny image has its login at the screen, and machines have none")
    return options


def main(args: Sequence[str]) -> int:
    """Boot machines, print the table, write JSON; an exit code as `run_suite`."""
    return run_suite("netboot", args, parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    if reason := why_not(options.firmware):
        raise BenchError(f"no bare machines: {reason}")
    kernel = find_stock_kernel()
    alone: Mapping[str, list[Started]] = {_NETBOOT: [], _LOCAL: []}
    for number in range(options.rounds):
        for way, started in (
            (_NETBOOT, _over_network(suite.bench, options.firmware)),
            (_LOCAL, _from_disk(suite.bench, kernel, options.firmware)),
        ):
            alone[way].append(started)
            told = f"{way}: kernel after {started.kernel:.1f} s, login after {started.login:.1f} s"
            suite.tell(f"round {number + 1} of {options.rounds}: {told}")
    reads = recorded_boot(suite.bench, options.recorded)
    counts = (1, options.machines)
    crowds: dict[int, list[Crowd]] = {count: [] for count in counts}
    real: dict[int, Crowd] = {}
    with _behind_line(suite, options.link) as place:
        for number in range(options.rounds):
            for count in counts:
                crowds[count].append(_replayed(suite, place, count, reads))
                suite.tell(f"{count} replayed, round {number + 1}: {_told(crowds[count][-1])}")
        for count in () if options.no_real else counts:
            real[count] = _machines(suite, place, count, options.firmware)
            suite.tell(f"{count} real machines: {_told(real[count])}")
    judged = bars(alone, crowds, real)
    suite.write(figures(alone, crowds, real), judged)
    suite.console.print(_table(alone))
    return suite.judge(judged)


def _told(crowd: Crowd) -> str:
    busy = f", processors {crowd.usage.busy:.0%} busy" if crowd.usage else ""
    return f"the last after {crowd.last:.1f} s, {crowd.sent / 1e6:.2f} MB sent by the seeder{busy}"


@contextmanager
def netbooting(
    bench: Bench, host: Host, ref: str | Path, home: Path, more: Sequence[Argument]
) -> Iterator[None]:
    """`p2pcloop netboot` at a host's bridge, once machines can start."""
    log = home.with_suffix(".netboot")
    argv: list[Argument] = [*host.inside, bench.p2pcloop, "netboot", ref, "--lan", BRIDGE]
    argv += ["--home", home, "--append", _WORDS, *more]
    with serving(argv, lambda: "machines that start" in log.read_text(), log, limit=120):
        yield


def _over_network(bench: Bench, firmware: Firmware) -> Started:
    place = bench.work / "network"
    place.mkdir()
    with (
        lan() as (here, other),
        dhcp_server(other, place),
        node_on(bench, here, place / "home") as home,
        netbooting(bench, here, bench.cloop, home, ()),
    ):
        started = _start(Machine(1, firmware), here, place)
    shutil.rmtree(place)
    return started


def _from_disk(bench: Bench, kernel: Kernel, firmware: Firmware) -> Started:
    place = bench.work / "disk"
    place.mkdir()
    disk = Part((), settings={"DISK": "/dev/vda", "READ_AHEAD_KB": str(READ_AHEAD_KB)})
    initramfs = place / "initramfs"
    initramfs.write_bytes(
        build_machine_root(kernel, file_system="ext4", disk=disk, drivers=("virtio_blk",))
    )
    machine = Machine(1, firmware)
    facts = f"p2pcloop.node=- p2pcloop.image=- p2pcloop.mac={machine.mac} {_WORDS}"
    argv: list[str | Path] = ["-kernel", kernel.path, "-initrd", initramfs, "-append", facts]
    argv += ["-drive", f"file={bench.image},format=raw,if=virtio,snapshot=on"]
    with lan() as (here, other), dhcp_server(other, place):
        started = _start(machine, here, place, argv)
    shutil.rmtree(place)
    return started


def _start(machine: Machine, host: Host, place: Path, more: Sequence[str | Path] = ()) -> Started:
    begun = time.monotonic()
    with switched_on(machine, host, place, more) as console:
        console.expect(_FIRST_LINE, LIMIT)
        kernel = time.monotonic() - begun
        console.expect(LOGIN, LIMIT)
        return Started(kernel, time.monotonic() - begun)


@dataclass(frozen=True, slots=True)
class _Place:
    """A LAN whose node has a slow line to a seeder.

    Attributes:
        host: of the node; its bridge is the LAN.
        client: on the LAN: the node serves no program of its own machine.
        ref: the link of the image.
        image: its id, as far as machines name it.
    """

    seeder: Host
    host: Host
    client: Host
    work: Path
    ref: str
    image: str


@contextmanager
def _behind_line(suite: Suite, link: Link) -> Iterator[_Place]:
    bench = suite.bench
    place = bench.work / "behind"
    place.mkdir()
    with (
        network(link, ["seeder", "node"], bench.work) as (seeder, host),
        node_on(bench, seeder, place / "seeder") as served,
    ):
        ref = publish_optimised(Rig(bench, boot_initramfs(bench), seeder, host), served)
        told = run([*seeder.inside, bench.p2pcloop, "info", ref, "--json", "--home", served])
        for command in (
            f"link add {BRIDGE} type bridge mcast_snooping 0",
            f"addr add {_LAN_ADDRESS}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ):
            run([*host.inside, "ip", *command.split()])
        with behind(host, BRIDGE, _CLIENT_ADDRESS) as client:
            # A node serves a few connections of an address alone.
            for number in range(MAX_MACHINES):
                words = f"addr add {_client_address(number)}/24 dev eth0"
                run([*client.inside, "ip", *words.split()])
            yield _Place(seeder, host, client, place, ref, _field(told, "image_id")[:16])


@contextmanager
def _node(suite: Suite, place: _Place) -> Iterator[None]:
    """A node that knows nothing of the image, and serves it to the LAN."""
    bench, home = suite.bench, place.work / "node"
    with node_on(bench, place.host, home):
        run([*place.host.inside, bench.p2pcloop, "daemon", "start", "--home", home])
        options: list[Argument] = ["--dhcp", "server", "--range", _RANGE]
        with netbooting(bench, place.host, place.ref, home, options):
            yield
    shutil.rmtree(home)


def _field(told: str, name: str) -> str:
    import json  # noqa: PLC0415  only here

    return str(json.loads(told)[name])


def _replayed(suite: Suite, place: _Place, count: int, reads: Sequence[Read]) -> Crowd:
    # Before the node: what it fetches ahead of the first machine counts, too.
    meter, before = Meter(suite.group), place.seeder.traffic()

    def one(number: int) -> float:
        _enter_network(place.client.pid)
        name = f"{place.image}/52:54:00:78:00:{number:02x}/{uuid.uuid4()}".encode()
        address = (_LAN_ADDRESS, PORT)
        with socket.create_connection(address, 60, (_client_address(number), 0)) as connected:
            reader = NbdReader(connected, LIMIT, name)
            replay(reader, reads)
            reader.close()
        return time.monotonic() - start

    # Threads of their own: each goes into the namespace, and does not come back.
    with _node(suite, place), ThreadPoolExecutor(count) as pool:
        start = time.monotonic()
        last = max(pool.map(one, range(count)))
    return Crowd(last, place.seeder.traffic().since(before).sent, meter.usage())


def _client_address(number: int) -> str:
    """Of a replayed machine; outside the range that real ones get."""
    return f"192.168.99.{100 + number}"


def _enter_network(pid: int) -> None:
    """Move this thread into the network of a process (setns(2))."""
    library = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if library.setns(fd, _NEW_NET):
            code = ctypes.get_errno()
            raise BenchError(f"a thread cannot enter the network: {os.strerror(code)}")
    finally:
        os.close(fd)


def _machines(suite: Suite, place: _Place, count: int, firmware: Firmware) -> Crowd:
    # Before the node: what it fetches ahead of the first machine counts, too.
    meter, before = Meter(suite.group), place.seeder.traffic()
    with _node(suite, place), ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        start = time.monotonic()
        consoles = [
            stack.enter_context(
                switched_on(Machine(number + 1, firmware, memory=384), place.host, place.work)
            )
            for number in range(count)
        ]

        def one(number: int) -> float:
            consoles[number].expect(LOGIN, LIMIT)
            return time.monotonic() - start

        last = max(pool.map(one, range(count)))
    return Crowd(last, place.seeder.traffic().since(before).sent, meter.usage())


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _table(alone: Mapping[str, Sequence[Started]]) -> Table:
    shown = Table("one machine", _FIRMWARE, "login")
    for way, rounds in alone.items():
        kernel, login = (
            _median([each.kernel for each in rounds]),
            _median([e.login for e in rounds]),
        )
        shown.add_row(way, f"{kernel:.1f} s", f"{login:.1f} s")
    return shown


def figures(
    alone: Mapping[str, Sequence[Started]],
    crowds: Mapping[int, Sequence[Crowd]],
    real: Mapping[int, Crowd],
) -> list[Figure]:
    """Everything for the report."""
    found = []
    for way, rounds in alone.items():
        found.append(Figure("login", way, "s", tuple(each.login for each in rounds)))
        found.append(Figure(_FIRMWARE, way, "s", tuple(each.kernel for each in rounds)))
    kinds = [("replayed", crowds), ("real", {count: [crowd] for count, crowd in real.items()})]
    for kind, each in kinds:
        for count, samples in each.items():
            where = f"{count} {kind}"
            last = tuple(crowd.last for crowd in samples)
            sent = tuple(float(crowd.sent) for crowd in samples)
            own = tuple(crowd.usage.own for crowd in samples if crowd.usage)
            found.append(Figure("the last machine", _NETBOOT, "s", last, where))
            found.append(Figure("sent by the seeder", _NETBOOT, "B", sent, where))
            if own:
                found.append(Figure("processor time of all", _NETBOOT, "s", own, where))
    return found


def bars(
    alone: Mapping[str, Sequence[Started]],
    crowds: Mapping[int, Sequence[Crowd]],
    real: Mapping[int, Crowd],
) -> list[Bar]:
    """The limits: of one machine's start, of the last of many, and of the node's line."""
    over, local = alone[_NETBOOT], alone[_LOCAL]
    firmware = _median([each.kernel for each in over]) - _median([each.kernel for each in local])
    ours = Quantity(_median([each.login for each in over]) - firmware)
    base = Quantity(_median([each.login for each in local]))
    found = [Bar("login over the network, without iPXE / from a disk", "s", ours, base, 1.15)]
    few, many = sorted(crowds)
    doubts = [
        doubt
        for count in (few, many)
        for doubt in doubts_of_usage(f"{count} booted", [c.usage for c in crowds[count]])
    ]
    last = [Quantity(_median([crowd.last for crowd in crowds[count]])) for count in (many, few)]
    sent = [Quantity(_median([crowd.sent for crowd in crowds[count]])) for count in (many, few)]
    title = f"the last of {many} / one alone"
    found.append(Bar(title, "s", last[0], last[1], 1.6, doubts=tuple(doubts)))
    found.append(Bar(f"the seeder sends to {many} / to one", "B", sent[0], sent[1], 1.5))
    if real:
        ours, base = Quantity(real[many].sent), Quantity(real[few].sent)
        found.append(Bar(f"the same, {many} real machines", "B", ours, base, 1.5))
        found.append(
            Bar(f"the last of {many} real machines", "s", Quantity(real[many].last), None, None)
        )
    return found
