"""`tools/bench state-desktop`: a suspended desktop goes on at a reader, over a slow line.

An XFce with a VNC server of its own. The clock runs from the start of `p2pcloop resume LINK`, in an
empty home, until a viewer beside the guest has the picture that was there before the suspend, and
has typed a letter that the terminal shows.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bench.figure import Bar, Figure
from bench.guests import LIMIT, PROMPT
from bench.harness import Bench, BenchError
from bench.links import suite as words
from bench.links.boots import LinkRun, Plan, run_link
from bench.links.control import doubts_of_local, doubts_of_others, doubts_of_transfer
from bench.links.link import Link
from bench.links.network import Host, network
from bench.links.rig import Boot, Contender, Rig, listen_at, node_on, seed
from bench.links.sample import RECEIVED, TIME
from bench.links.state import State, resumed, seeding
from bench.links.suite import Suite, run_suite
from bench.processes import Argument, run, run_json
from bench.run_setup import CHECKOUT
from tools.console import Console, NotInTimeError

_FAST = Link(1e9)
_GUEST = "p2pcloop"
"""Its host name, as in the prompt that the image shows without one."""

_BOOT_LIMIT = 900.0
"""Seconds: without KVM, on a busy machine."""

_PORT = 7099
"""Of the seeder: its address is in the state's link."""

_ADDRESS = "127.0.0.1:5901"
_NETWORK = ("--net", "user", "--port", f"{_ADDRESS}:5901")

RESUMED, HERE = "desktop-resume", "desktop-resume-here"
COMPLETE = "picture complete"

SECONDS = {1507e3: 6.0}
"""The most that a desktop may take until a key is answered, by the link's bytes a second."""


@dataclass(slots=True)
class Looks:
    """What the viewers saw.

    Attributes:
        before: the picture when the guest was suspended.
        by: which contender runs.
        here: where the state was made, once a contender runs there.
        earlier: of each resume of a contender, seconds from the complete picture to the answer.
    """

    before: Path
    by: str = ""
    here: Host | None = None
    earlier: dict[str, list[float]] = field(default_factory=lambda: {RESUMED: [], HERE: []})


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = words.parser(
        "state-desktop", "Resume a desktop from a peer until it answers a key.", rounds=3
    )
    parser.add_argument(
        "--links",
        type=words.links,
        default=words.links("1507"),
        metavar="LINK,...",
        help="rates in KB/s of 1000 bytes or in Mbit, and round trips (default 1507)",
    )
    words.add_patience(parser)
    parser.set_defaults(image=("--desktop", "vnc"))
    options = parser.parse_args(args)
    if options.image != ("--desktop", "vnc"):
        parser.error("the tiny image has no desktop")
    return options


def main(args: Sequence[str]) -> int:
    """Resume, print times and bytes, write the JSON; an exit code as `run_suite`."""
    return run_suite("state-desktop", args, parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    runs, figures = [], []
    before = suite.bench.work / "before.png"
    state = _made_state(suite.bench, before)
    for number, link in enumerate(options.links):
        place = suite.bench.work / str(number)
        place.mkdir()
        looks = Looks(before)
        plan = Plan(
            [Contender(RESUMED, _ABOUT, partial(_cold, state, looks))],
            options.rounds, LIMIT, suite.group, options.patience,
            local=Contender(HERE, _ABOUT_HERE, partial(_here, state, looks)),
            arrive=partial(_at_answer, looks),
        )  # fmt: skip
        found = run_link(link, plan, replace(suite.bench, work=place), suite.tell)
        runs.append(found)
        figures += [*found.figures().values(), *_complete(found, looks)]
    judged = [bar for each in runs for bar in bars(each)]
    suite.write(figures, judged)
    return suite.judge(judged)


def _made_state(bench: Bench, before: Path) -> State:
    """Boot the desktop in QEMU on the seeder, open a terminal, and suspend it; it is rehearsed by a
    viewer that does what is measured later."""
    home = bench.work / "state"
    with network(_FAST, ("seeder", "reader"), bench.work) as (seeder, _reader):
        with node_on(bench, seeder, home):
            listen_at(seeder, home, _PORT)
            name = seed(bench, seeder, home, bench.cloop)["name"]
            argv: list[Argument] = [*seeder.inside, bench.p2pcloop, "boot", name, "--home", home]
            argv += ["--vm", "qemu", "--name", _GUEST, "--mem", "512M", *_NETWORK]
            argv += ["--cpu", str(bench.cpu)]
            log, errors = home.parent / "record.log", home.parent / "boot.log"
            with Console([*map(str, argv)], log=log, errors=errors) as console:
                console.expect(PROMPT, _BOOT_LIMIT)
                run(_use(seeder, "prepare", before), limit=_BOOT_LIMIT)
                link = _suspended(bench, seeder, home, before)
                console.wait(LIMIT)
    return State(home, link)


def _suspended(bench: Bench, seeder: Host, home: Path, before: Path) -> str:
    use = shlex.join(_use(None, "answer", before))
    argv: list[Argument] = [*seeder.inside, bench.p2pcloop, "suspend", _GUEST, "--publish", "state"]
    told = run_json([*argv, "--public", "--json", "--rehearse", use, "--home", home])
    if not told["rehearsed"]:
        raise BenchError("the state was published without a rehearsal")
    return str(told["link"])


def _use(host: Host | None, verb: str, picture: Path) -> list[str]:
    """The command that uses a desktop; on a host, or where it is started."""
    argv = [*([] if host is None else host.inside), "env", f"PYTHONPATH={CHECKOUT}", sys.executable]
    return [*argv, "-m", "bench.links.use_desktop", verb, _ADDRESS, str(picture)]


@contextmanager
def _cold(state: State, looks: Looks, rig: Rig, _shared: Path) -> Iterator[Boot]:
    @contextmanager
    def boot(place: Path, _limit: float) -> Iterator[Console]:
        looks.by = RESUMED
        with (
            node_on(rig.bench, rig.reader, place / "home") as home,
            resumed(rig, rig.reader, state.link, home, place, *_NETWORK) as console,
        ):
            yield console

    with seeding(rig, state):
        yield boot


@contextmanager
def _here(state: State, looks: Looks, rig: Rig, _shared: Path) -> Iterator[Boot]:
    @contextmanager
    def boot(place: Path, _limit: float) -> Iterator[Console]:
        looks.by, looks.here = HERE, rig.seeder
        with resumed(rig, rig.seeder, state.link, state.home, place, *_NETWORK) as console:
            yield console

    yield boot


def _at_answer(looks: Looks, _console: Console, reader: Host, _place: Path, limit: float) -> float:
    """Wait until a key is answered; returns when that was."""
    host = looks.here if looks.by == HERE else reader
    try:
        said = run(_use(host, "answer", looks.before), limit=limit)
    except BenchError as err:
        looks.earlier[looks.by].append(0.0)
        raise NotInTimeError(f"the desktop does not answer: {err}") from err
    complete, answered = map(float, said.split())
    looks.earlier[looks.by].append(answered - complete)
    return answered


def _complete(found: LinkRun, looks: Looks) -> list[Figure]:
    """When the picture was complete."""
    return [
        Figure(
            COMPLETE,
            name,
            "s",
            tuple(
                sample.seconds - earlier
                for sample, earlier in zip(found.samples[name], looks.earlier[name], strict=True)
            ),
            str(found.link),
            tuple(number for number, sample in enumerate(found.samples[name]) if sample.exceeded),
        )
        for name in (RESUMED, HERE)
    ]


_ABOUT = "p2pcloop resume of a desktop's state by its link, with an empty home"
_ABOUT_HERE = "the same on the machine that made it: no link"


def bars(found: LinkRun) -> list[Bar]:
    """The bars of a desktop on one link."""
    figures = {key: figure.median for key, figure in found.figures().items()}
    rate = found.link.rate
    doubts = [*doubts_of_transfer(found.link, found.control), *doubts_of_local(found.samples[HERE])]
    usages = [sample.usage for sample in found.samples[RESUMED]]
    doubts += doubts_of_others(f"{RESUMED} ran", usages)
    seconds, received = figures[RESUMED, TIME], figures[RESUMED, RECEIVED]
    title = f"desktop, resumed, until a key is answered, {found.link}"
    return [
        Bar(title, "s", seconds, None, SECONDS.get(rate), doubts=tuple(doubts)),
        Bar(f"desktop, resumed, {RECEIVED}, {found.link}", "B", received, None, None),
    ]
