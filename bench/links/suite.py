"""What the commands over slow links begin with."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench.harness import Bench, BenchError
from bench.links.bar import Bar, bar_table
from bench.links.network import why_not
from bench.links.usage import own_group
from bench.machine import machine_facts
from bench.session import opened_bench, screen

MACHINE_CANNOT, INTERRUPTED = 2, 130


@dataclass(frozen=True, slots=True)
class Suite:
    """A run of one of the commands.

    Attributes:
        group: the control group of this program; None where there is none.
        facts: about the machine.
    """

    bench: Bench
    group: Path | None
    facts: dict[str, str | int]
    console: Console

    def tell(self, text: str) -> None:
        """A line of progress or of results."""
        self.console.print(text, markup=False)

    def tell_facts(self) -> None:
        """What the figures were taken on."""
        for key, value in self.facts.items():
            self.tell(f"{key}: {value}")

    def judge(self, bars: Sequence[tuple[str, Bar]], report: Path) -> bool:
        """Tell which bars are reached, why others cannot be told, and where the report is.

        Args:
            bars: each with the link on which it was measured.

        Returns:
            Whether all are reached.
        """
        self.console.print(bar_table(bars))
        doubts = dict.fromkeys(f"{link}: {doubt}" for link, bar in bars for doubt in bar.doubts)
        for doubt in doubts:
            self.tell(f"not told: {doubt}")
        self.tell(f"written to {report}")
        return all(bar.reached for _, bar in bars)


def run_suite(
    options: argparse.Namespace, body: Callable[[Suite, argparse.Namespace], bool]
) -> int:
    """Do what a command is for.

    Args:
        options: with `tiny` and `cpu`.
        body: whether every bar was measured and reached.

    Returns:
        0 where it was, 1 where it was not or something failed, 2 where this machine or user
        cannot make such links, 130 where it was ended by a signal.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers and nodes end with it
    console = screen()
    if reason := why_not():
        console.print(f"tools/bench: no slow links: {reason}", markup=False)
        return MACHINE_CANNOT
    try:
        with opened_bench(tiny=options.tiny, cpu=options.cpu) as bench, own_group() as group:
            reached = body(Suite(bench, group, machine_facts(bench), console), options)
    except BenchError as err:
        console.print(f"tools/bench: {err}", markup=False)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0 if reached else 1
