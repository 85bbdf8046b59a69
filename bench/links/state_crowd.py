"""`tools/bench state-crowd`: many who resume one state at once, each on a slow line of its own.

The seeder has the upload of one. Each is replayed without QEMU (held.py), up to the moment at which
its guest would go on: eight guests by TCG would measure the processors of this one machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.figure import Bar, Figure
from bench.guests import LIMIT
from bench.links import suite as words
from bench.links.control import doubts_of_usage
from bench.links.crowd import Crowd, Replayed, run_crowd, seeded
from bench.links.rig import Rig
from bench.links.state import publish_state
from bench.links.suite import Suite, run_suite
from bench.processes import Argument, run
from bench.run_setup import CHECKOUT

_MANY, OF_ALONE = 8, 1.5
"""How many resume at once, and the most that the last one may take, divided by one alone."""


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    about = "Resume one state at many machines at once."
    return words.parser("state-crowd", about, rounds=3, link_of="each host").parse_args(args)


def main(args: Sequence[str]) -> int:
    """Resume, print times, write the JSON; an exit code as `run_suite`."""
    return run_suite("state-crowd", args, parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    place = suite.bench.work / "crowd"
    crowds: dict[int, list[Crowd]] = {1: [], _MANY: []}
    with seeded(options.link, _MANY, suite.bench, suite.group, publish_state) as shared:
        for number in range(options.rounds):
            for count, rounds in crowds.items():
                rounds.append(run_crowd(shared, count, _held, place))
                told = f"{count} at once, round {number + 1} of {options.rounds}"
                suite.tell(f"{told}: the last after {rounds[-1].last:.2f} s")
    where = str(options.link)
    figures = [
        Figure("the last resume", f"{count} at once", "s", tuple(c.last for c in rounds), where)
        for count, rounds in crowds.items()
    ]
    alone, many = (figure.median for figure in figures)
    doubts = tuple(doubts_of_usage("they ran", [each.usage for each in crowds[_MANY]]))
    title = f"the last of {_MANY} resumes / one alone, {where}"
    judged = [Bar(title, "s", many, alone, OF_ALONE, doubts=doubts)]
    suite.write(figures, judged)
    return suite.judge(judged)


def _held(rig: Rig, link: str, home: Path) -> Replayed:
    """A resume on the reader, up to the moment at which its guest goes on."""
    argv: list[Argument] = [*rig.reader.inside, "env", f"PYTHONPATH={CHECKOUT}:{CHECKOUT}/daemon"]
    argv += [sys.executable, "-m", "bench.links.held", link, home]
    return Replayed(float(run(argv, limit=LIMIT)), ())
