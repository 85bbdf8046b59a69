"""`tools/bench desktop`: from the start of `boot` to a complete desktop, also over slow lines.

The clock runs from the start of `p2pcloop boot --display vnc` to the last change of the picture. It
is then still for two seconds, with the panel, the icons and the clock painted
(tools/desktop_look.py). A VNC viewer beside the guest looks at it. Bytes are those that the
reader's interface received until the end of these two seconds.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.figure import Bar
from bench.guests import LIMIT
from bench.links import ours
from bench.links import suite as words
from bench.links.boots import LinkRun, Plan, run_link
from bench.links.control import doubts_of_local, doubts_of_others, doubts_of_transfer
from bench.links.network import Host
from bench.links.rig import Boot, Contender, Rig, node_on
from bench.links.sample import RECEIVED, TIME
from bench.links.suite import Suite, run_suite
from bench.processes import run, tail
from bench.run_setup import CHECKOUT
from tools.console import Console, NotInTimeError

_LINKS = "8748,1507,613"
_ADDRESS = "127.0.0.1:5907"
_OPTIONS = ("--display", f"vnc:{_ADDRESS}")
_PASSWORD = re.compile(r"^p2pcloop: display: its password, for other viewers: (\S+)$", re.MULTILINE)
_STILL = 2.0
_REST = 8.0
"""Seconds without a change before a recorded guest is shut down: the profile ends where the guest
rests for four."""

LOCAL, PLAIN, PROFILED = "local file", "plain", "optimised"

TALK = {8748e3: 35.0, 1507e3: 50.0, 613e3: 50.0}
"""Seconds to the desktop in the talk, by the link's bytes a second; the plain image is sooner."""

SECONDS = {8748e3: 11.0, 1507e3: 17.0, 613e3: 28.0}
"""The most that the optimised image may take."""

LOCAL_SECONDS, MOST_BYTES = 10.0, 13e6


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    about = (
        "Boot a desktop until its picture is complete and still: from a file, and over slow lines."
    )
    parser = words.parser("desktop", about, rounds=3)
    parser.add_argument(
        "--links",
        type=words.links,
        default=words.links(_LINKS),
        metavar="LINK,...",
        help=f"rates in KB/s of 1000 bytes or in Mbit, and round trips (default {_LINKS})",
    )
    words.add_patience(parser)
    parser.add_argument(
        "--light", action="store_true", help="the light desktop; its times have no bars"
    )
    parser.set_defaults(image=("--desktop",))
    options = parser.parse_args(args)
    if options.image != ("--desktop",):
        parser.error("the tiny image has no desktop")
    if options.light:
        options.image = ("--desktop", "light")
    return options


def main(args: Sequence[str]) -> int:
    """Boot, print times and bytes, write the JSON and pictures; an exit code as `run_suite`."""
    return run_suite("desktop", args, parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    look = "light" if options.light else "xfce"
    runs = []
    suite.out.mkdir(parents=True, exist_ok=True)
    for number, link in enumerate(options.links):
        place = suite.bench.work / str(number)
        place.mkdir()
        pictures = suite.out / f"desktop-{look}-{number}.png"
        plan = Plan(
            _contenders(look), options.rounds, LIMIT, suite.group, options.patience,
            local=Contender(LOCAL, "p2pcloop boot of the raw file", _local),
            arrive=partial(_at_desktop, look, pictures),
        )  # fmt: skip
        runs.append(run_link(link, plan, replace(suite.bench, work=place), suite.tell))
    figures = [figure for each in runs for figure in each.figures().values()]
    judged = [] if options.light else [bar for each in runs for bar in bars(each)]
    suite.write(figures, judged)
    return suite.judge(judged)


@contextmanager
def _local(rig: Rig, shared: Path) -> Iterator[Boot]:
    @contextmanager
    def boot(place: Path, _limit: float) -> Iterator[Console]:
        with (
            node_on(rig.bench, rig.reader, place / "home") as home,
            ours.boot_link(rig, str(rig.bench.image), home, place, _OPTIONS) as console,
        ):
            yield console

    del shared
    yield boot


def _contenders(look: str) -> list[Contender]:
    optimised = partial(ours.publish_optimised, record=partial(_record, look))
    return [
        ours.cold(PLAIN, "p2pcloop boot of a cloop by its link", ours.publish_plain, _OPTIONS),
        ours.cold(PROFILED, "the same, optimised", optimised, _OPTIONS),
    ]


def _record(look: str, rig: Rig, home: Path, name: str) -> None:
    """Boot on the seeder until the desktop rests; its home keeps the profile."""
    with ours.booted_to_record(rig, home, name, *_OPTIONS):
        _watch(look, rig.seeder, home.parent, home.parent / "recorded.png", _REST, LIMIT)


def _at_desktop(
    look: str, picture: Path, _console: Console, reader: Host, place: Path, limit: float
) -> float:
    """Wait until the desktop is complete and still; returns when the picture last changed."""
    return _watch(look, reader, place, picture, _STILL, limit)


def _watch(look: str, host: Host, place: Path, picture: Path, still: float, limit: float) -> float:
    end = time.monotonic() + limit
    log = place / "boot.log"
    while (told := _PASSWORD.search(log.read_text(errors="replace"))) is None:
        if time.monotonic() > end:
            raise NotInTimeError(f"boot does not tell of its display: {tail(log)}")
        time.sleep(0.05)
    argv = [*host.inside, "env", f"PYTHONPATH={CHECKOUT}", sys.executable]
    argv += ["-m", "bench.links.watch_desktop", _ADDRESS, told[1], look, str(picture), str(still)]
    said = run(argv)
    at = float(said.split("\n", 1)[0])
    if at > end:
        raise NotInTimeError(f"the desktop is not complete: {said}")
    return at


def bars(found: LinkRun) -> list[Bar]:
    """The desktop's bars on one link: local, plain and optimised."""
    figures = {key: figure.median for key, figure in found.figures().items()}
    link_doubts = doubts_of_transfer(found.link, found.control)
    link_doubts += doubts_of_local(found.samples[LOCAL])

    def bar(name: str, what: str, unit: str, limit: float | None) -> Bar:
        usages = [sample.usage for sample in found.samples[name]]
        doubts = doubts_of_others(f"{name} booted", usages) if what == TIME else []
        title = f"desktop, {name}, {what}, {found.link}"
        own = link_doubts if what == TIME else []
        return Bar(title, unit, figures[name, what], None, limit, doubts=(*own, *doubts))

    return [
        bar(LOCAL, TIME, "s", LOCAL_SECONDS),
        bar(PLAIN, TIME, "s", TALK.get(found.link.rate)),
        bar(PROFILED, TIME, "s", SECONDS.get(found.link.rate)),
        bar(PROFILED, RECEIVED, "B", MOST_BYTES),
    ]
