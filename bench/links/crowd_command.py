"""`tools/bench crowd`: many nodes that boot at once."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from bench.links import options as words
from bench.links.bar import Bar
from bench.links.control import doubts_of_usage
from bench.links.crowd import Crowd, run_crowd, seeded
from bench.links.least import least_of, record_boot
from bench.links.plots import last_against_number, misses_over_time
from bench.links.sample import Figure
from bench.links.suite import Suite, run_suite
from bench.session import write_report

_NODES = "1,8,16"
_MISS = 0.005
"""Seconds from which a read of the plot counts as one that waited for the link."""

Crowds = Mapping[int, Sequence[Crowd]]
"""By the number of nodes, a crowd for each round."""


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = words.parser(
        "crowd",
        "Boot many nodes at once, each on a slow link; a recorded boot is replayed on each.",
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
    parser.add_argument(
        "--guest", action="store_true", help="one of them, where there are more, is a real guest"
    )
    return parser.parse_args(args)


def main(args: Sequence[str]) -> int:
    """Boot crowds, print the table, write JSON and plots; an exit code as `run_suite`."""
    return run_suite(parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    suite.tell("a boot is recorded")
    reads = record_boot(suite.bench)
    packed = least_of(suite.bench, reads).packed
    counts = sorted({1, *options.nodes})
    crowds: dict[int, list[Crowd]] = {count: [] for count in counts}
    with seeded(options.link, counts[-1], suite.bench, suite.group) as rig:
        for number in range(options.rounds):
            for count in counts:
                place = suite.bench.work / "crowd"
                guest = options.guest and count > 1
                crowds[count].append(run_crowd(rig, count, reads, place, guest=guest))
                told = f"{count} nodes, round {number + 1} of {options.rounds}"
                suite.tell(f"{told}: {_told(crowds[count][-1])}")
    report = _write(suite, options, crowds, packed)
    suite.tell_facts()
    suite.console.print(table(crowds, packed))
    return suite.judge([(str(options.link), bar) for bar in bars(crowds, packed)], report)


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


def last(rounds: Sequence[Crowd]) -> float:
    """Seconds of the last node, the median of all rounds."""
    return statistics.median(crowd.last for crowd in rounds)


def sent(rounds: Sequence[Crowd]) -> float:
    """Bytes that the seeder sent, the median of all rounds."""
    return statistics.median(crowd.sent for crowd in rounds)


def bars(crowds: Crowds, packed: int) -> list[Bar]:
    """What the crowds are held against."""
    doubts = {
        count: tuple(doubts_of_usage(f"{count} booted", [crowd.usage for crowd in rounds]))
        for count, rounds in crowds.items()
    }
    found = []
    if 8 in crowds:
        times, alone = Figure(last(crowds[8]) / last(crowds[1])), doubts[1]
        found.append(Bar("the last of 8 / one alone", times, 1.5, alone + doubts[8]))
        found.append(Bar("the seeder of 8 sends / W", Figure(sent(crowds[8]) / packed), 1.5, ()))
    if {8, 16} <= set(crowds):
        times = Figure(last(crowds[16]) / last(crowds[8]))
        found.append(Bar("the last of 16 / the last of 8", times, 1.1, doubts[8] + doubts[16]))
    return found


def _write(suite: Suite, options: argparse.Namespace, crowds: Crowds, packed: int) -> Path:
    told = {count: [asdict(crowd) for crowd in rounds] for count, rounds in crowds.items()}
    link = asdict(options.link)
    report = write_report(
        {"machine": suite.facts, "link": link, "packed": packed, "crowds": told}, options.json
    )
    points = [(float(count), last(rounds)) for count, rounds in crowds.items()]
    last_against_number({"p2pcloop": points}, report.with_suffix(".last.svg"))
    waits = {
        f"one of {count}": [
            (wait.at, wait.seconds * 1000)
            for wait in rounds[0].boots[0].waits
            if wait.seconds >= _MISS
        ]
        for count, rounds in crowds.items()
    }
    misses_over_time(waits, report.with_suffix(".misses.svg"))
    return report
