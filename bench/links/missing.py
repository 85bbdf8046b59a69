"""`tools/bench missing`: how many round trips a read waits for a chunk that is not here.

Reads of 4 KiB through NBD, one after the other, each in another chunk and far from the last, from
one peer. A round trip is that of a TCP handshake on the same link. The bytes of a read take time of
their own at the link's rate. They are reported, and that time is not subtracted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.fetch import scattered_data, wait_times
from bench.figure import Bar, Figure, Quantity
from bench.guests import boot_initramfs
from bench.harness import BenchError
from bench.links import suite as words
from bench.links.control import (
    Control,
    doubts_of_others,
    doubts_of_transfer,
    plain_transfer,
)
from bench.links.link import Link
from bench.links.network import network
from bench.links.rig import Rig, node_on, seed
from bench.links.suite import Suite, run_suite
from bench.links.usage import Meter, Usage
from bench.nbd_reader import NbdReader
from bench.processes import Argument, server

_LINK = "100Mbit+20ms"


@dataclass(frozen=True, slots=True)
class Misses:
    """The reads of one round.

    Attributes:
        p50, p99, longest: seconds.
        received: bytes at the reader's interface for one read, on average.
        usage: of the processors meanwhile; None where unknown.
    """

    reads: int
    p50: float
    p99: float
    longest: float
    received: float
    usage: Usage | None


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    about = "How long a read waits for one chunk from a peer, in round trips."
    parser = words.parser("missing", about, rounds=3)
    parser.add_argument(
        "--link", type=words.link, default=words.link(_LINK), help=f"(default {_LINK})"
    )
    return parser.parse_args(args)


def main(args: Sequence[str]) -> int:
    """Read, print the table, write the JSON; an exit code as `run_suite`."""
    return run_suite("missing", args, parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    bench = suite.bench
    blocks = scattered_data(bench.image)
    if not options.link.delay:
        raise BenchError("a link without a round trip gives no unit to count in: add +20ms")
    with (
        network(options.link, ("seeder", "reader"), bench.work) as (seeder, reader),
        node_on(bench, seeder, bench.work / "seeder") as home,
    ):
        rig = Rig(bench, boot_initramfs(bench), seeder, reader)
        control = plain_transfer(rig, options.link, bench.work / "transfer.log")
        link = seed(bench, seeder, home, bench.cloop)["link"]
        rounds = []
        for number in range(options.rounds):
            rounds.append(_read_all(rig, link, blocks, number, suite.group))
            suite.tell(f"round {number + 1} of {options.rounds}: {_told(rounds[-1], control)}")
    judged = bars(rounds, control, options.link)
    suite.write(figures(rounds, control, options.link), judged)
    return suite.judge(judged)


def _read_all(
    rig: Rig, link: str, blocks: dict[int, bytes], number: int, group: Path | None
) -> Misses:
    bench, socket = rig.bench, rig.bench.work / "nbd.sock"
    with node_on(bench, rig.reader, bench.work / f"reader-{number}") as home:
        argv: list[Argument] = [*rig.reader.inside, bench.p2pcloop, "block", link]
        argv += ["--home", home, "--nbd", f"unix:{socket}"]
        with server(argv, socket, bench.work / "block.log"):
            reader = NbdReader(socket)
            reader.read(0)  # fetches everything that is needed once: manifest, maps, the connection
            before, meter = rig.reader.traffic(), Meter(group)
            times = [time / 1000 for time in wait_times(reader, blocks)]
            received, usage = rig.reader.traffic().since(before).received, meter.usage()
            reader.close()
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return Misses(len(times), cuts[49], cuts[98], max(times), received / len(times), usage)


def _told(misses: Misses, control: Control) -> str:
    trip = control.round_trip
    p50, p99, longest = (s / trip for s in (misses.p50, misses.p99, misses.longest))
    return (
        f"{misses.reads} reads, p50 {p50:.2f}, p99 {p99:.2f}, the longest {longest:.2f} round trips"
        f" of {trip * 1000:.1f} ms; {misses.received / 1e3:.1f} KB received for each"
    )


def figures(rounds: Sequence[Misses], control: Control, link: Link) -> list[Figure]:
    """Everything for the report."""

    def figure(what: str, unit: str, values: Iterable[float]) -> Figure:
        return Figure(what, "p2pcloop", unit, tuple(values), str(link))

    return [
        figure("wait for a missing chunk, p50", "s", (one.p50 for one in rounds)),
        figure("wait for a missing chunk, p99", "s", (one.p99 for one in rounds)),
        figure("wait for a missing chunk, the longest", "s", (one.longest for one in rounds)),
        figure("received for a missing chunk", "B", (one.received for one in rounds)),
        Figure("round trip", "TCP", "s", (control.round_trip,), str(link)),
    ]


def bars(rounds: Sequence[Misses], control: Control, link: Link) -> list[Bar]:
    """The medians over all rounds, in round trips."""
    usages = [one.usage for one in rounds]
    doubts = (*doubts_of_transfer(link, control), *doubts_of_others("reads waited", usages))
    trip = Quantity(control.round_trip)
    p50 = Quantity(statistics.median(one.p50 for one in rounds))
    p99 = Quantity(statistics.median(one.p99 for one in rounds))
    title = "a missing chunk, {} / a round trip"
    return [
        Bar(title.format("p50"), "s", p50, trip, 1.5, doubts=doubts),
        Bar(title.format("p99"), "s", p99, trip, 3.0, doubts=doubts),
    ]
