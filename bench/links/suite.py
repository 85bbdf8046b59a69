"""The start and the end of the commands over slow lines, and the options that they share."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench.figure import Bar, Figure, Report, Started, bar_table, write_report
from bench.harness import Bench, BenchError
from bench.links.link import Link
from bench.links.network import why_not
from bench.links.usage import own_group
from bench.run_setup import PROGRAM, RESULTS, machine_facts, opened_bench, screen

MACHINE_CANNOT, INTERRUPTED = 2, 130
_LINK = "1507"
"""KB/s of a slow line, where the user chooses no other."""

_PATHS = ("--out", "--p2pcloop", "--profile", "--recorded")
"""Options that take a path: they are no part of the command that repeats a run."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A run of one of the commands.

    Attributes:
        group: the control group of this program; None if there is none.
        out: the folder for reports.
    """

    name: str
    bench: Bench
    group: Path | None
    started: Started
    out: Path
    console: Console

    def tell(self, text: str) -> None:
        """Print a line of progress or of results."""
        self.console.print(text, markup=False)

    def write(self, figures: Sequence[Figure], bars: Sequence[Bar]) -> Path:
        """Write the report and print the facts about the machine; returns the file."""
        report = Report(self.name, self.started.over(), tuple(figures), tuple(bars))
        path = write_report(report, self.out)
        for key, value in self.started.machine.items():
            self.tell(f"{key}: {value}")
        self.tell(f"load: {report.run.load}")
        self.tell(f"written to {path}")
        return path

    def judge(self, bars: Sequence[Bar]) -> bool:
        """Print which bars are reached, and why others cannot be judged.

        Returns:
            Whether all are reached.
        """
        self.console.print(bar_table(bars))
        for doubt in dict.fromkeys(f"{bar.title}: {doubt}" for bar in bars for doubt in bar.doubts):
            self.tell(f"not judged: {doubt}")
        return all(bar.reached for bar in bars)


def run_suite(
    name: str,
    args: Sequence[str],
    options: argparse.Namespace,
    body: Callable[[Suite, argparse.Namespace], bool],
) -> int:
    """Run a command.

    Args:
        args: its words, for the report.
        options: with those of `parser`.
        body: measures, and returns whether every bar was measured and reached.

    Returns:
        0 if it was, 1 if it was not or something failed, 2 if this machine or user cannot make
        such links, 130 if a signal ended it.
    """
    console = screen()
    if reason := why_not():
        console.print(f"tools/bench: no slow lines: {reason}", markup=False)
        return MACHINE_CANNOT
    try:
        with (
            opened_bench(*options.image, cpu=options.cpu, program=options.p2pcloop) as bench,
            own_group() as group,
        ):
            started = Started.now(command_of(name, args), machine_facts(bench))
            suite = Suite(name, bench, group, started, options.out, console)
            reached = body(suite, options)
    except BenchError as err:
        console.print(f"tools/bench: {err}", markup=False)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0 if reached else 1


def command_of(name: str, args: Sequence[str]) -> str:
    """The command that repeats a run, without the paths of this machine."""
    kept: list[str] = []
    words = iter(args)
    for word in words:
        if word in _PATHS:
            next(words, None)
        elif word.partition("=")[0] not in _PATHS:
            kept.append(word)
    return shlex.join(["tools/bench", name, *kept])


def parser(
    name: str, about: str, *, rounds: int, epilog: str = "", link_of: str = ""
) -> argparse.ArgumentParser:
    """A parser of `tools/bench NAME` with the options that all have.

    Args:
        link_of: whose link `--link` chooses; empty: there is no such option.
    """
    made = argparse.ArgumentParser(
        prog=f"tools/bench {name}",
        description=f"{about} Hosts are network namespaces of this machine; needs root.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--rounds",
        type=within(1, 100, int),
        default=rounds,
        help=f"samples of each (default {rounds})",
    )
    if link_of:
        help_ = f"of {link_of} (default {_LINK})"
        made.add_argument("--link", type=link, default=link(_LINK), help=help_)
    made.add_argument(
        "--tiny",
        dest="image",
        action="store_const",
        const=("--tiny",),
        default=(),
        help="busybox instead of Debian",
    )
    made.add_argument("--cpu", type=int, help="the processor for guests (default: the last)")
    made.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for the JSON (default build/bench/)"
    )
    made.add_argument(
        "--p2pcloop", type=Path, default=PROGRAM, help="the program to measure (default: our own)"
    )
    return made


def add_recorded(parser: argparse.ArgumentParser) -> None:
    """Add `--recorded`, so that two runs can share one recorded boot."""
    parser.add_argument(
        "--recorded",
        type=Path,
        metavar="FILE",
        help="the recorded boot to take; a file that is not there yet is written",
    )


def add_patience(parser: argparse.ArgumentParser) -> None:
    """Add `--patience`, for a machine that is never quiet."""
    parser.add_argument(
        "--patience",
        type=within(0, 3600, float),
        default=60.0,
        help="seconds to wait for a quiet machine, at most, before each boot (default 60)",
    )


def within(least: float, most: float, number: Callable[[str], float]) -> Callable[[str], float]:
    """A type for argparse: a number within limits."""

    def parse(text: str) -> float:
        try:
            value = number(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from err
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"it must be {least:g} to {most:g}")
        return value

    return parse


def link(text: str) -> Link:
    """A type for argparse: a link."""
    try:
        return Link.parse(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def links(text: str) -> list[Link]:
    """A type for argparse: links, with commas between."""
    return [link(part) for part in text.split(",")]


def counts(text: str) -> list[int]:
    """A type for argparse: numbers of nodes, ascending, with commas between."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers, as 1,8,16") from err
    if not 1 <= found[0] <= found[-1] <= 64:
        raise argparse.ArgumentTypeError("a crowd has 1 to 64 nodes")
    return found
