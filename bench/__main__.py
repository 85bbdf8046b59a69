"""The command `tools/bench`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import (
    boot,
    compare,
    fetch,
    first_block,
    guest_net,
    guest_reads,
    many,
    memory,
    mount,
    nbd_reads,
    only_source,
    packing,
    performance_page,
    plan,
    seed,
    serve,
    stack,
    start,
    startup,
    twice,
    upgrade,
    web_page,
)
from bench.figure import Started, bar_table, write_report
from bench.harness import run_measure
from bench.links import (
    boot_command,
    crowd,
    desktop,
    download,
    kept,
    migrating,
    missing,
    netboot,
    state,
    state_crowd,
    state_desktop,
)
from bench.links.suite import INTERRUPTED
from bench.run_setup import PROGRAM, RESULTS, machine_facts, opened_bench, screen

MEASURES = {
    measure.name: measure
    for measure in (
        boot.BOOT,
        boot.READ_ONLY,
        fetch.FETCH,
        only_source.ONLY_SOURCE,
        first_block.FIRST_BLOCK,
        guest_net.GUEST_NET,
        guest_reads.READS,
        nbd_reads.READS,
        nbd_reads.CLOOP_READS,
        mount.MOUNT,
        seed.SEED,
        seed.CLOOP_SEED,
        serve.SERVE,
        packing.PACK,
        packing.CLOOP_WRITE,
        upgrade.PUBLISH,
        upgrade.UPGRADE,
        memory.MEMORY,
        many.MANY,
        stack.STACK,
        start.START,
        startup.HELP,
        startup.PS,
        startup.STATUS,
        web_page.WEB,
        twice.TWICE,
        plan.PLAN,
    )
}

SUITES = {
    "links": boot_command.main,
    "crowd": crowd.main,
    "missing": missing.main,
    "kept": kept.main,
    "download": download.main,
    "desktop": desktop.main,
    "netboot": netboot.main,
    "state": state.main,
    "state-crowd": state_crowd.main,
    "state-desktop": state_desktop.main,
    "migrate": migrating.main,
}
"""Measures over slow lines, with options of their own; named first, and alone."""

OTHERS = {"compare": compare.main, "page": performance_page.main}
"""Commands that work with the reports of measures; named first, with options of their own."""


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    listed = "\n".join(f"  {m.name:13} {m.about}" for m in MEASURES.values())
    others = "\n".join(f"  tools/bench {name} --help" for name in (*SUITES, *OTHERS))
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Measure p2pcloop against its bars. Contenders run turn about; a figure is the"
        " median of all rounds, a ratio is of two medians of the same run.",
        epilog=f"measures (all of these if none is named):\n{listed}\n"
        f"over slow lines, and with reports:\n{others}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help="measures to take")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each (default 5)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for the JSON (default build/bench/)"
    )
    parser.add_argument(
        "--p2pcloop", type=Path, default=PROGRAM, help="the program to measure (default: our own)"
    )
    options = parser.parse_args(args)
    unknown = set(options.measures) - set(MEASURES)
    if unknown:
        parser.error(f"no such measure: {', '.join(sorted(unknown))} (see --help)")
    if not 1 <= options.rounds <= 100:
        parser.error("--rounds takes 1 to 100")
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; 0 if every bar is reached, 130 if interrupted."""
    words = sys.argv[1:] if args is None else args
    try:
        if words and words[0] in SUITES | OTHERS:
            return (SUITES | OTHERS)[words[0]](words[1:])
        return _measure(parse(words))
    except KeyboardInterrupt:
        return INTERRUPTED


def _measure(options: argparse.Namespace) -> int:
    wanted = [MEASURES[name] for name in options.measures or MEASURES]
    console = screen()

    def tell(text: str) -> None:
        console.print(text, markup=False)

    reports = []
    with opened_bench(program=options.p2pcloop) as bench:
        facts = machine_facts(bench)
        for number, measure in enumerate(wanted):
            own = replace(bench, work=bench.work / str(number))
            own.work.mkdir()
            command = f"tools/bench {measure.name} --rounds {options.rounds}"
            started = Started.now(command, facts)
            reports.append(run_measure(measure, own, options.rounds, started, tell))
            path = write_report(reports[-1], options.out)
            tell(f"load {reports[-1].run.load}; written to {path}")
    for key, value in facts.items():
        tell(f"{key}: {value}")
    console.print(bar_table([bar for report in reports for bar in report.bars]))
    for report in reports:
        if report.error:
            tell(f"{report.name}: not measured: {report.error}")
    return 0 if all(report.reached for report in reports) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers and nodes end with it
    sys.exit(main())
