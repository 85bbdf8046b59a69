"""The command `tools/bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from bench import (
    boot,
    boot_bytes,
    boot_read_only,
    cloop,
    fetch,
    first_block,
    guest_reads,
    memory,
    nbd_reads,
    pack,
    publish,
    seed,
    serve,
    stack,
    startup,
    twice,
    upgrade,
)
from bench.harness import Outcome, Result, run_measure
from bench.links import command as links
from bench.links import crowd_command, download, kept, missing
from bench.machine import machine_facts
from bench.session import opened_bench, screen, write_report

MEASURES = {
    measure.name: measure
    for measure in (
        boot.COLD,
        boot.WARM,
        boot_bytes.BYTES,
        boot_read_only.READ_ONLY,
        fetch.FETCH,
        first_block.FIRST_BLOCK,
        guest_reads.READS,
        nbd_reads.READS,
        seed.SEED,
        serve.SERVE,
        pack.PACK,
        cloop.WRITE,
        cloop.READS,
        cloop.SEED,
        publish.PUBLISH,
        upgrade.UPGRADE,
        memory.MEMORY,
        stack.STACK,
        startup.HELP,
        twice.TWICE,
    )
}

SUITES = {
    "links": links.main,
    "crowd": crowd_command.main,
    "missing": missing.main,
    "kept": kept.main,
    "download": download.main,
}
"""Measures over slow links, with options of their own; named first, and alone."""


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    listed = "\n".join(f"  {m.name:13} {m.about}" for m in MEASURES.values())
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Measure p2pcloop against its bars. Contenders run turn about; a figure is the"
        " median of all rounds, a ratio is of two medians of the same run.",
        epilog=f"measures (all of them when none is named):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help="what to measure")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each (default 5)")
    parser.add_argument("--json", type=Path, help="where the JSON goes (default build/bench/)")
    options = parser.parse_args(args)
    unknown = set(options.measures) - set(MEASURES)
    if unknown:
        parser.error(f"no such measure: {', '.join(sorted(unknown))} (see --help)")
    if not 1 <= options.rounds <= 100:
        parser.error("--rounds takes 1 to 100")
    return options


def show(results: Iterable[Result]) -> Table:
    """The table of all rows."""
    table = Table("measure", "p2pcloop", "against", "ratio", "bar", "")
    for result in results:
        if result.error:
            table.add_row(result.name, "", "", "", "", "[red]not measured[/red]")
        for outcome in result.outcomes:
            row = outcome.row
            table.add_row(row.title, *_figures(outcome), *_verdict(outcome))
    return table


def _figures(outcome: Outcome) -> tuple[str, str, str]:
    unit = outcome.row.unit
    ours = f"{outcome.ours:,.4g} {unit}" if outcome.ours < 1e4 else f"{outcome.ours:,.0f} {unit}"
    if outcome.base is None:
        return ours, "", ""
    base = f"{outcome.base:,.4g} {unit}" if outcome.base < 1e4 else f"{outcome.base:,.0f} {unit}"
    return ours, base, f"{outcome.compared:.2f}"


def _verdict(outcome: Outcome) -> tuple[str, str]:
    row = outcome.row
    if row.bar is None:
        return "", ""
    sign = "≥" if row.at_least else "≤"
    bar = f"{sign} {row.bar:g}" + (f" {row.unit}" if outcome.base is None else " times")
    return bar, "[green]reached[/green]" if outcome.reached else "[red]missed[/red]"


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; 0 when every bar is reached."""
    words = sys.argv[1:] if args is None else args
    if words and words[0] in SUITES:
        return SUITES[words[0]](words[1:])
    options = parse(words)
    wanted = [MEASURES[name] for name in options.measures or MEASURES]
    console = screen()

    def tell(text: str) -> None:
        console.print(text, markup=False)

    results = []
    with opened_bench() as bench:
        facts = machine_facts(bench)
        for number, measure in enumerate(wanted):
            place = bench.work / str(number)
            place.mkdir()
            own = replace(bench, work=place)
            results.append(run_measure(measure, own, options.rounds, tell))
    told = {"machine": facts, "rounds": options.rounds}
    report = write_report(told | {"results": [r.as_json() for r in results]}, options.json)
    for key, value in facts.items():
        tell(f"{key}: {value}")
    console.print(show(results))
    tell(f"written to {report}")
    reached = all(not r.error and all(o.reached for o in r.outcomes) for r in results)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
