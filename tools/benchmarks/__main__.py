"""The command `tools/bench`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.benchmarks import (
    boot,
    boot_bytes,
    fetch,
    first_block,
    guest_reads,
    memory,
    nbd_reads,
    publish,
    seed,
    stack,
    startup,
    upgrade,
)
from tools.benchmarks.guests import pinned_cpu
from tools.benchmarks.harness import Bench, Outcome, Result, run_measure
from tools.benchmarks.machine import machine_facts

CHECKOUT = Path(__file__).resolve().parent.parent.parent
MEASURES = {
    measure.name: measure
    for measure in (
        boot.COLD,
        boot.WARM,
        boot_bytes.BYTES,
        fetch.FETCH,
        first_block.FIRST_BLOCK,
        guest_reads.READS,
        nbd_reads.READS,
        seed.SEED,
        publish.PUBLISH,
        upgrade.UPGRADE,
        memory.MEMORY,
        stack.STACK,
        startup.HELP,
    )
}


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    listed = "\n".join(f"  {m.name:12} {m.about}" for m in MEASURES.values())
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
    options = parse(args)
    wanted = [MEASURES[name] for name in options.measures or MEASURES]
    screen = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

    def tell(text: str) -> None:
        screen.print(text, markup=False)

    built = subprocess.run(
        [CHECKOUT / "tools/build-image"], stdout=subprocess.PIPE, text=True, check=False
    )
    if built.returncode != 0:
        return 1
    cloop = CHECKOUT / built.stdout.strip()
    target = CHECKOUT / "build/bench"
    target.mkdir(parents=True, exist_ok=True)
    results = []
    # A short name: sockets in it must keep within 108 bytes.
    with tempfile.TemporaryDirectory(prefix="w-", dir=target) as work:
        program = CHECKOUT / ".venv/bin/p2pcloop"
        bench = Bench(cloop.with_suffix(".img"), cloop, program, Path(work), pinned_cpu())
        facts = machine_facts(bench)
        for number, measure in enumerate(wanted):
            place = Path(work) / str(number)
            place.mkdir()
            own = Bench(bench.image, bench.cloop, bench.p2pcloop, place, bench.cpu)
            results.append(run_measure(measure, own, options.rounds, tell))
    now = datetime.now(UTC)
    report = options.json or target / f"{now:%Y%m%d-%H%M%S}.json"
    told = {"when": now.isoformat(), "machine": facts, "rounds": options.rounds}
    report.write_text(json.dumps(told | {"results": [r.as_json() for r in results]}, indent=1))
    for key, value in facts.items():
        tell(f"{key}: {value}")
    screen.print(show(results))
    tell(f"written to {report}")
    reached = all(not r.error and all(o.reached for o in r.outcomes) for r in results)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
