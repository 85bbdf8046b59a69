"""`tools/bench crowd`: many nodes that boot the same image at once, each on a slow line of its own.

One seeder has the upload of one node. Each node is a p2pcloopd and a block server of its own. Its
guest is a recorded boot, replayed through NBD: so many real guests would be too much for the
processors. One node can be a real guest. Each p2pcloopd runs already and knows nothing of the
image: starting them all at once would measure the processors of this one machine.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.table import Table

from bench.figure import Bar, Figure, Quantity
from bench.guests import LOGIN, boot_initramfs
from bench.harness import Bench
from bench.links import suite as words
from bench.links.control import doubts_of_usage
from bench.links.crowd_model import CrowdModel, Measured, model_table
from bench.links.least import least_of, recorded_boot
from bench.links.link import Link
from bench.links.network import Host, network
from bench.links.ours import Publish, boot_link, publish_optimised
from bench.links.plots import last_against_number, misses_over_time
from bench.links.rig import Rig, listen_at, node_on
from bench.links.suite import Suite, run_suite
from bench.links.torrents import tell_tracker, tracker
from bench.links.usage import Meter, Usage
from bench.nbd_reader import NbdReader
from bench.processes import Argument, daemon_pid, processor_seconds, run, server
from bench.replay import Wait, replay
from bench.trace import Read

LIMIT = 600.0
PORT = 6881
_OURS, _SENT = "p2pcloop", "sent by the seeder"
_NODE, _SEEDER = "processor time of a node", "processor time of the seeder's p2pcloopd"
_NODES = "1,8,16"
_MISS = 0.005
"""Seconds from which a read of the plot counts as one that waited for the link."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One node's replayed boot.

    Attributes:
        seconds: from the start of its command to the last read.
        processor: seconds of processor time until then, of its p2pcloopd and its block server.
    """

    seconds: float
    waits: tuple[Wait, ...]
    processor: float = 0.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """One crowd of a round.

    Attributes:
        boots: of the nodes that replay.
        guest: seconds to the prompt of the real one; None if there was none.
        sent: bytes at the seeder's interface meanwhile.
        usage: of the processors meanwhile; None if it is unknown.
        seeder: seconds of processor time of its p2pcloopd meanwhile.
    """

    boots: tuple[Replayed, ...]
    guest: float | None
    sent: int
    usage: Usage | None
    seeder: float = 0.0

    @property
    def last(self) -> float:
        """Seconds of the last that replays."""
        return max(boot.seconds for boot in self.boots)


Crowds = Mapping[int, Sequence[Crowd]]
"""By the number of nodes, a crowd for each round."""


@dataclass(frozen=True, slots=True)
class Seeded:
    """The means that all crowds of a run share.

    Attributes:
        link: p2pcloop's, to the image.
        home: of the seeder's node.
        nodes: hosts, as many as the largest crowd.
        group: the control group of this program.
    """

    rig: Rig
    link: str
    home: Path
    nodes: Sequence[Host]
    group: Path | None


@contextmanager
def seeded(
    link: Link, count: int, bench: Bench, group: Path | None, publish: Publish = publish_optimised
) -> Iterator[Seeded]:
    """Lay links for a seeder and `count` nodes, and have the seeder serve an image.

    A tracker on the seeder names to each node all others that boot.
    """
    names = ["seeder", *(f"n{number}" for number in range(count))]
    with (
        network(link, names, bench.work) as (seeder, *nodes),
        tracker(seeder, [], bench.work) as url,
        node_on(bench, seeder, bench.work / "seeder") as home,
    ):
        listen_at(seeder, home, PORT, f'[discovery]\nannounce_trackers = ["{url}"]\n')
        rig = Rig(bench, boot_initramfs(bench), seeder, nodes[0])
        yield Seeded(rig, publish(rig, home), home, nodes, group)


ReplayBoot = Callable[[Rig, str, Path], Replayed]
"""Replays the boot of a link on a rig's reader, whose p2pcloopd runs on a home."""


def run_crowd(
    shared: Seeded, count: int, replayed: ReplayBoot, place: Path, *, guest: bool = False
) -> Crowd:
    """Boot so many nodes at once, with empty homes; with `guest` one of them is a real guest."""
    place.mkdir()
    there = (shared.rig.seeder, *shared.nodes[:count])
    tell_tracker(shared.rig.bench.work, [(host, PORT) for host in there])
    rigs = [replace(shared.rig, reader=host) for host in shared.nodes[:count]]
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        homes = [
            stack.enter_context(node_on(rig.bench, rig.reader, place / f"n{number}"))
            for number, rig in enumerate(rigs)
        ]
        for rig, home in zip(rigs, homes, strict=True):
            listen_at(rig.reader, home, PORT, "[discovery]\ntrackers = true\n")
            run([*rig.reader.inside, rig.bench.p2pcloop, "daemon", "start", "--home", home])
        meter, before = Meter(shared.group), shared.rig.seeder.traffic()
        seeder = daemon_pid(shared.home)
        used = processor_seconds(seeder)
        real = pool.submit(_real, rigs.pop(), shared.link, homes.pop()) if guest else None
        boots = list(pool.map(lambda rig, home: replayed(rig, shared.link, home), rigs, homes))
        prompt = real.result() if real else None
        sent, usage = shared.rig.seeder.traffic().since(before).sent, meter.usage()
        used = processor_seconds(seeder) - used
    shutil.rmtree(place)
    return Crowd(tuple(boots), prompt, sent, usage, used)


def _replayed(reads: Sequence[Read], rig: Rig, link: str, home: Path) -> Replayed:
    socket = home.with_suffix(".sock")
    argv: list[Argument] = [*rig.reader.inside, rig.bench.p2pcloop, "block", link]
    argv += ["--profile", "--home", home, "--nbd", f"unix:{socket}"]
    daemon = daemon_pid(home)
    start, used = time.monotonic(), processor_seconds(daemon)
    with server(argv, socket, home.with_suffix(".log"), limit=LIMIT) as block_server:
        reader = NbdReader(socket, LIMIT)
        try:
            waits = replay(reader, reads)
            used = processor_seconds(daemon) - used + processor_seconds(block_server.pid)
            return Replayed(time.monotonic() - start, tuple(waits), used)
        finally:
            reader.close()


def _real(rig: Rig, link: str, home: Path) -> float:
    place = home.with_suffix(".guest")
    place.mkdir()
    start = time.monotonic()
    with boot_link(rig, link, home, place) as console:
        console.expect(LOGIN, LIMIT)
        return time.monotonic() - start


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = words.parser(
        "crowd",
        "Boot many nodes at once, each on a slow line; a recorded boot is replayed on each.",
        rounds=3,
    )
    parser.add_argument("--link", type=words.link, default=words.link("1507"), help="of each host")
    parser.add_argument(
        "--nodes",
        type=words.counts,
        default=words.counts(_NODES),
        metavar="N,...",
        help=f"how many boot at once (default {_NODES}); one alone is always measured",
    )
    parser.add_argument("--guest", action="store_true", help="one of several is a real guest")
    words.add_recorded(parser)
    return parser.parse_args(args)


def main(args: Sequence[str]) -> int:
    """Boot crowds, print the table, write JSON and plots; an exit code as `run_suite`."""
    return run_suite("crowd", args, parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    suite.tell("a boot is recorded")
    reads = recorded_boot(suite.bench, options.recorded)
    packed = least_of(suite.bench, reads).packed
    counts = sorted({1, *options.nodes})
    crowds: dict[int, list[Crowd]] = {count: [] for count in counts}
    with seeded(options.link, counts[-1], suite.bench, suite.group) as rig:
        for number in range(options.rounds):
            for count in counts:
                place = suite.bench.work / "crowd"
                guest = options.guest and count > 1
                replayed = partial(_replayed, reads)
                crowds[count].append(run_crowd(rig, count, replayed, place, guest=guest))
                told = f"{count} nodes, round {number + 1} of {options.rounds}"
                suite.tell(f"{told}: {_told(crowds[count][-1])}")
    judged = bars(crowds, packed)
    _plot(crowds, suite.write(figures(crowds, packed), judged))
    suite.console.print(table(crowds, packed))
    if (model := fitted(crowds, options.link)) is not None:
        suite.console.print(model_table(model))
    return suite.judge(judged)


def _told(crowd: Crowd) -> str:
    text = f"the last after {crowd.last:.1f} s, {crowd.sent / 1e6:.2f} MB sent by the seeder"
    if crowd.guest is not None:
        text += f", the real guest after {crowd.guest:.1f} s"
    if crowd.usage:
        text += f", processors {crowd.usage.busy:.0%} busy, others {crowd.usage.others:.0%}"
    return text


def table(crowds: Crowds, packed: int) -> Table:
    """Medians of each size of crowd; `packed` is W."""
    shown = Table("nodes", "median s", "last s", "real guest s", "seeder sent MB", "/ W", "busy")
    for count, rounds in crowds.items():
        every = [boot.seconds for crowd in rounds for boot in crowd.boots]
        guests = [crowd.guest for crowd in rounds if crowd.guest is not None]
        busy = [crowd.usage.busy for crowd in rounds if crowd.usage]
        shown.add_row(
            str(count),
            f"{statistics.median(every):.1f}",
            f"{last(rounds):.1f}",
            f"{statistics.median(guests):.1f}" if guests else "",
            f"{sent(rounds) / 1e6:.2f}",
            f"{sent(rounds) / packed:.2f}",
            f"{statistics.median(busy):.0%}" if busy else "",
        )
    return shown


def fitted(crowds: Crowds, link: Link) -> CrowdModel | None:
    """The model of these crowds; None where the processor time of some is unknown, or one size
    alone was measured."""
    measured = []
    for count, rounds in crowds.items():
        usages = [crowd.usage for crowd in rounds if crowd.usage]
        if not usages:
            return None
        measured.append(
            Measured(
                count,
                last(rounds),
                processor(rounds),
                statistics.median(crowd.seeder for crowd in rounds),
                sent(rounds),
                statistics.median(usage.own for usage in usages),
                statistics.median(usage.others for usage in usages),
            )
        )
    return CrowdModel(measured, link.rate) if len(measured) > 1 else None


def processor(rounds: Sequence[Crowd]) -> float:
    """Seconds of processor time of one node, the median of all."""
    return statistics.median(boot.processor for crowd in rounds for boot in crowd.boots)


def last(rounds: Sequence[Crowd]) -> float:
    """Seconds of the last node, the median of all rounds."""
    return statistics.median(crowd.last for crowd in rounds)


def sent(rounds: Sequence[Crowd]) -> float:
    """Bytes that the seeder sent, the median of all rounds."""
    return statistics.median(crowd.sent for crowd in rounds)


def figures(crowds: Crowds, packed: int) -> list[Figure]:
    """Everything for the report."""
    found = [Figure(_SENT, "W", "B", (float(packed),))]
    for count, rounds in crowds.items():
        where = "1 node" if count == 1 else f"{count} nodes"
        busy = tuple(crowd.usage.busy for crowd in rounds if crowd.usage)
        guests = tuple(crowd.guest for crowd in rounds if crowd.guest is not None)
        medians = (statistics.median(boot.seconds for boot in crowd.boots) for crowd in rounds)
        found += [
            Figure("the last node", _OURS, "s", tuple(crowd.last for crowd in rounds), where),
            Figure("the median node", _OURS, "s", tuple(medians), where),
            Figure(_SENT, _OURS, "B", tuple(float(crowd.sent) for crowd in rounds), where),
            Figure(_NODE, _OURS, "s", tuple(processor([crowd]) for crowd in rounds), where),
            Figure(_SEEDER, _OURS, "s", tuple(crowd.seeder for crowd in rounds), where),
            *([Figure("the real guest", _OURS, "s", guests, where)] if guests else []),
            *([Figure("processors busy", _OURS, "", busy, where)] if busy else []),
        ]
    return found


def bars(crowds: Crowds, packed: int) -> list[Bar]:
    """The limits for crowds of 8 and of 16."""
    doubts = {
        count: tuple(doubts_of_usage(f"{count} booted", [crowd.usage for crowd in rounds]))
        for count, rounds in crowds.items()
    }

    def later(title: str, many: int, few: int, most: float) -> Bar:
        ours, base = Quantity(last(crowds[many])), Quantity(last(crowds[few]))
        return Bar(title, "s", ours, base, most, doubts=(*doubts[few], *doubts[many]))

    found = []
    if 8 in crowds:
        found.append(later("the last of 8 / one alone", 8, 1, 1.5))
        seeder = Quantity(sent(crowds[8]))
        found.append(Bar("the seeder of 8 sends / W", "B", seeder, Quantity(packed), 1.5))
    if {8, 16} <= set(crowds):
        found.append(later("the last of 16 / the last of 8", 16, 8, 1.1))
    return found


def _plot(crowds: Crowds, report: Path) -> None:
    """Draw plots beside the report."""
    points = [(float(count), last(rounds)) for count, rounds in crowds.items()]
    last_against_number({_OURS: points}, report.with_suffix(".last.svg"))
    waits = {
        f"one of {count}": [
            (wait.at, wait.seconds * 1000)
            for wait in rounds[0].boots[0].waits
            if wait.seconds >= _MISS
        ]
        for count, rounds in crowds.items()
    }
    misses_over_time(waits, report.with_suffix(".misses.svg"))
