"""`tools/bench compare`: the programs of two checkouts, in turn, round by round.

Each round runs each measure once with the other checkout's p2pcloop and once with this one's, by
the code of this bench and with the same recorded boot and profile. Both see the same machine that
way, however loaded it is: the ratios of medians count, not the seconds.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.figure import Bar, Figure, Report, Started, bar_table, read_report, write_report
from bench.harness import BenchError
from bench.processes import run, tail
from bench.run_setup import CHECKOUT, RESULTS, screen

BEFORE, AFTER = "before", "after"
_OWN = "p2pcloop,p2pcloop-profile,p2pcloop-warm"
"""The contenders of `links` that run p2pcloop."""

_WITH_RECORDED = ("links", "crowd")
_IN_PROCESS = {"first-block", "memory", "only-source", "plan", "stack"}
"""Measures that run code of this checkout even if they are given another program."""

_MORE_IS_BETTER = ("/s", "MB/s")
_STOP_SECONDS = 60.0


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tools/bench compare",
        description="Run measures with the p2pcloop of another checkout (before) and with this"
        " one's (after), interleaved round by round, and print ratios of medians.",
        epilog="example: tools/bench compare ../before 'links --links 1507' 'crowd --nodes 8'"
        " missing --rounds 3",
    )
    parser.add_argument("other", type=Path, help="the other checkout; run its tools/setup first")
    parser.add_argument("measures", nargs="+", metavar="MEASURE", help="its options in one word")
    parser.add_argument("--rounds", type=int, default=3, help="of each program (default 3)")
    parser.add_argument(
        "--most", type=float, default=1.03, help="the ratio that counts as equal (default 1.03)"
    )
    parser.add_argument(
        "--limit", type=float, default=3600.0, help="seconds for one run (default 3600)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default build/bench/)")
    options = parser.parse_args(args)
    if not 1 <= options.rounds <= 100:
        parser.error("--rounds takes 1 to 100")
    for measure in options.measures:
        if measure.split()[0] in _IN_PROCESS:
            parser.error(f"{measure} runs this checkout's own code and compares nothing")
    return options


def main(args: Sequence[str]) -> int:
    """Compare; 0 if nothing of p2pcloop is worse, 1 if something is or a run failed."""
    options, console = parse(args), screen()
    checkouts = {BEFORE: options.other.absolute(), AFTER: CHECKOUT}
    programs = {side: checkout / ".venv/bin/p2pcloop" for side, checkout in checkouts.items()}
    folder = options.out / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    runs: dict[tuple[str, str], list[Report]] = {}
    command = f"tools/bench compare OTHER {shlex.join(options.measures)} --rounds {options.rounds}"
    started = Started.now(command, {})
    try:
        for checkout in checkouts.values():
            _compile(checkout)
        for number in range(options.rounds):
            sides = [BEFORE, AFTER] if number % 2 == 0 else [AFTER, BEFORE]
            for measure in options.measures:
                for side in sides:
                    label = f"{measure.split()[0]}-{number + 1}-{side}"
                    console.print(f"round {number + 1} of {options.rounds}: {measure}: {side}")
                    argv = _argv(measure, programs[side], folder)
                    report = _one_run(argv, folder / label, options.limit)
                    runs.setdefault((measure, side), []).append(report)
    except BenchError as err:
        console.print(f"tools/bench: {err}", markup=False)
        return 1
    bars = [
        bar
        for measure in options.measures
        for bar in compared(
            measure, joined(runs[measure, BEFORE]), joined(runs[measure, AFTER]), options.most
        )
    ]
    over = started.over()
    path = write_report(Report("compare", over, (), tuple(bars)), options.out)
    console.print(bar_table(bars, ours=AFTER, base=BEFORE))
    console.print(f"load {over.load}; written to {path}, every run to {folder}", markup=False)
    return 0 if all(bar.reached for bar in bars) else 1


def _compile(checkout: Path) -> None:
    """Compile a checkout's modules, as an installed program is: else its first run is slower."""
    python = checkout / ".venv/bin/python"
    run([python, "-m", "compileall", "-q", checkout / "p2pcloop", checkout / "daemon"])


def _argv(measure: str, program: Path, folder: Path) -> list[str | Path]:
    name, *words = shlex.split(measure)
    if name == "links" and "--contenders" not in words:
        words += ["--contenders", _OWN]
    if name in _WITH_RECORDED:
        image = "tiny" if "--tiny" in words else "debian"
        words += ["--recorded", str(folder / f"boot-{image}.json")]
        if name == "links":
            words += ["--profile", str(folder / f"boot-{image}.profile")]
    argv: list[str | Path] = [sys.executable, "-m", "bench", name, *words]
    return [*argv, "--rounds", "1", "--p2pcloop", program]


def _one_run(argv: Sequence[str | Path], folder: Path, limit: float) -> Report:
    """Run a measure once; its report.

    Raises:
        BenchError: it wrote none, or not within `limit` seconds.
    """
    folder.mkdir(parents=True)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*argv, "--out", folder],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired as err:
        raise BenchError(f"{folder.name} took more than {limit:.0f} s: {tail(log)}") from err
    finally:
        _end(process)
    for path in folder.glob("*.json"):
        report = read_report(path)
        if report.error is None:
            return report
    raise BenchError(f"{folder.name} measured nothing: {tail(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a run with SIGINT, on which it ends its children."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def joined(reports: Sequence[Report]) -> dict[tuple[str, str, str], Figure]:
    """The figures of several runs of one measure, as if they were rounds of one run."""
    found: dict[tuple[str, str, str], Figure] = {}
    for report in reports:
        for each in report.figures:
            before = found.get(each.key)
            values = before.values if before else ()
            cut = before.cut if before else ()
            moved = tuple(len(values) + number for number in each.cut)
            found[each.key] = Figure(
                each.what, each.by, each.unit, values + each.values, each.where, cut + moved
            )
    return found


def compared(
    measure: str,
    before: dict[tuple[str, str, str], Figure],
    after: dict[tuple[str, str, str], Figure],
    most: float,
) -> list[Bar]:
    """A ratio of medians for each figure that both have.

    Only figures of p2pcloop are judged. The others (local boots, foreign programs) show how much
    the machine itself varied. Shares and counts have no unit and no ratio.
    """
    bars = []
    for key in before.keys() & after.keys():
        old, new = before[key], after[key]
        if not old.unit or (not old.median.value and not new.median.value):
            continue
        rate = old.unit in _MORE_IS_BETTER
        limit = (1 / most if rate else most) if old.by.startswith("p2pcloop") else None
        title = ", ".join(word for word in (measure.split(maxsplit=1)[0], *key) if word)
        bars.append(Bar(title, old.unit, new.median, old.median, limit, rate))
    return sorted(bars, key=lambda bar: bar.title)
