"""`tools/bench links`: boots over slow links, ours and others'."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tools.benchmarks.boot_bytes import touched_bytes
from tools.benchmarks.guests import LIMIT, LOGIN
from tools.benchmarks.harness import Bench, BenchError
from tools.benchmarks.links.boots import LinkRun, Plan, Tell, run_link
from tools.benchmarks.links.contenders import CONTENDERS
from tools.benchmarks.links.figures import Least, LinkFigures, bars, figures
from tools.benchmarks.links.link import Link
from tools.benchmarks.links.network import why_not
from tools.benchmarks.links.packed import first_touches, packed_bytes
from tools.benchmarks.links.plots import bytes_against_link, time_against_link
from tools.benchmarks.links.report import as_json, bar_table, doubt_lines, table
from tools.benchmarks.links.usage import own_group
from tools.benchmarks.machine import machine_facts
from tools.benchmarks.session import opened_bench, screen, write_report
from tools.benchmarks.trace import record

_LINKS = "8748,1507,613,25Mbit+20ms"


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    listed = "\n".join(f"  {c.name:14} {c.about}" for c in CONTENDERS.values())
    parser = argparse.ArgumentParser(
        prog="tools/bench links",
        description="Boot the same guest over slow links, by p2pcloop and by others, turn about."
        " Hosts are network namespaces of this machine; needs root.",
        epilog=f"contenders (all of them by default):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--links",
        type=_parsed_links,
        default=_parsed_links(_LINKS),
        help=f"rates in KB/s of 1000 bytes or Mbit, and round trips (default {_LINKS})",
    )
    parser.add_argument("--contenders", type=_names, default=list(CONTENDERS), metavar="NAME,...")
    parser.add_argument("--rounds", type=int, default=5, help="boots of each (default 5)")
    parser.add_argument(
        "--limit",
        type=float,
        default=120,
        help="seconds after which a boot is ended and counts as more than that (default 120)",
    )
    parser.add_argument("--tiny", action="store_true", help="boot busybox instead of Debian")
    parser.add_argument("--cpu", type=int, help="the processor for guests (default: the last)")
    parser.add_argument("--json", type=Path, help="where the JSON goes (default build/bench/)")
    options = parser.parse_args(args)
    if not 1 <= options.rounds <= 100:
        parser.error("--rounds takes 1 to 100")
    if not 1 <= options.limit <= 3600:
        parser.error("--limit takes 1 to 3600 seconds")
    return options


def _parsed_links(text: str) -> list[Link]:
    try:
        return [Link.parse(part) for part in text.split(",")]
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(CONTENDERS):
        raise argparse.ArgumentTypeError(f"no such contender: {', '.join(sorted(unknown))}")
    return names


def main(args: Sequence[str]) -> int:
    """Boot over every link, print tables, write the JSON.

    Returns:
        0 when every bar that was measured is reached; 1 when one is not, or cannot be told; 2
        when this machine can make no such links.
    """
    options, console = parse(args), screen()

    def tell(text: str) -> None:
        console.print(text, markup=False)

    if reason := why_not():
        tell(f"tools/bench links: {reason}")
        return 2
    with opened_bench(tiny=options.tiny, cpu=options.cpu) as bench, own_group() as group:
        facts = machine_facts(bench)
        tell("a boot whose reads are recorded, for what it cannot do without")
        least = measure_least(bench)
        plan = Plan(
            [CONTENDERS[name] for name in options.contenders], options.rounds, options.limit, group
        )
        runs = _run_links(options.links, plan, bench, tell)
    found = [figures(run, least) for run in runs]
    for key, value in facts.items():
        tell(f"{key}: {value}")
    for link in found:
        console.print(table(link))
    console.print(bar_table(found))
    for line in doubt_lines(found):
        tell(line)
    report = _write(options, runs, found, facts)
    tell(f"written to {report}")
    reached = len(runs) == len(options.links) and all(b.reached for f in found for b in bars(f))
    return 0 if reached else 1


def _write(
    options: argparse.Namespace,
    runs: Sequence[LinkRun],
    found: Sequence[LinkFigures],
    facts: Mapping[str, str | int],
) -> Path:
    """Write the JSON, and the plots beside it."""
    links = [as_json(run, link) for run, link in zip(runs, found, strict=True)]
    about = {name: CONTENDERS[name].about for name in options.contenders}
    told = {"machine": facts, "rounds": options.rounds, "contenders": about, "links": links}
    report = write_report(told, options.json)
    if found:
        time_against_link(found, report.with_suffix(".time.svg"))
        bytes_against_link(found, report.with_suffix(".bytes.svg"))
    return report


def measure_least(bench: Bench) -> Least:
    """Record a boot to the login prompt; what it cannot do without."""
    place = bench.work / "record"
    place.mkdir()
    reads = record(replace(bench, work=place), lambda console: console.expect(LOGIN, LIMIT))
    ranges = [(read.offset, read.length) for read in reads]
    return Least(
        packed_bytes(bench.image, first_touches(ranges)), touched_bytes(bench.cloop, ranges)
    )


def _run_links(links: Sequence[Link], plan: Plan, bench: Bench, tell: Tell) -> list[LinkRun]:
    """Run each link; one that fails is told and left out."""
    runs = []
    for number, link in enumerate(links):
        place = bench.work / str(number)
        place.mkdir()
        try:
            runs.append(run_link(link, plan, replace(bench, work=place), tell))
        except BenchError as err:
            tell(f"{link}: not measured: {err}")
    return runs
