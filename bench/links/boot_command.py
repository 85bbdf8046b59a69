"""`tools/bench links`: boots over slow lines, by p2pcloop and by other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.harness import BenchError
from bench.links import suite as words
from bench.links.boot_figures import bars, link_figures, table
from bench.links.boots import LinkRun, Plan, run_link
from bench.links.contenders import CONTENDERS
from bench.links.least import least_of, recorded_boot
from bench.links.plots import bytes_against_link, time_against_link
from bench.links.suite import Suite, run_suite

_LINKS = "8748,1507,613,25Mbit+20ms"


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    listed = "\n".join(f"  {c.name:14} {c.about}" for c in CONTENDERS.values())
    parser = words.parser(
        "links",
        "Boot the same guest over slow lines, by p2pcloop and by other programs, turn about.",
        rounds=5,
        epilog=f"contenders (all of them by default):\n{listed}",
    )
    parser.add_argument(
        "--links",
        type=words.links,
        default=words.links(_LINKS),
        metavar="LINK,...",
        help=f"rates in KB/s of 1000 bytes or in Mbit, and round trips (default {_LINKS})",
    )
    parser.add_argument("--contenders", type=_names, default=list(CONTENDERS), metavar="NAME,...")
    words.add_recorded(parser)
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="the profile to attach, so that two runs can share one; a file that is not there yet"
        " is written  [default: each line records its own]",
    )
    parser.add_argument(
        "--limit",
        type=words.within(1, 3600, float),
        default=120.0,
        help="seconds after which a boot is ended and counts as more than that (default 120)",
    )
    words.add_patience(parser)
    return parser.parse_args(args)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(CONTENDERS):
        raise argparse.ArgumentTypeError(f"no such contender: {', '.join(sorted(unknown))}")
    return names


def main(args: Sequence[str]) -> int:
    """Boot over every link, print tables, write JSON and plots; an exit code as `run_suite`."""
    return run_suite("links", args, parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    suite.tell("a boot is recorded, for the bytes that it cannot do without")
    least = least_of(suite.bench, recorded_boot(suite.bench, options.recorded))
    chosen = [CONTENDERS[name] for name in options.contenders]
    plan = Plan(chosen, options.rounds, options.limit, suite.group, options.patience)
    found = [link_figures(run, least) for run in _run_links(suite, options, plan)]
    judged = [bar for link in found for bar in bars(link)]
    report = suite.write([figure for link in found for figure in link.all_figures()], judged)
    if found:
        time_against_link(found, report.with_suffix(".time.svg"))
        bytes_against_link(found, report.with_suffix(".bytes.svg"))
    for link in found:
        suite.console.print(table(link))
    return suite.judge(judged) and len(found) == len(options.links)


def _run_links(suite: Suite, options: argparse.Namespace, plan: Plan) -> list[LinkRun]:
    """Run each link; one that fails is reported and left out."""
    runs = []
    for number, link in enumerate(options.links):
        place = suite.bench.work / str(number)
        place.mkdir()
        try:
            bench = replace(suite.bench, work=place, profile=options.profile)
            runs.append(run_link(link, plan, bench, suite.tell))
        except BenchError as err:
            suite.tell(f"{link}: not measured: {err}")
    return runs
