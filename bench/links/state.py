"""`tools/bench state`: a suspended guest goes on at a reader, over slow lines, until it answers.

The clock runs from the start of `p2pcloop resume LINK`, in an empty home, until the guest's shell
has answered a line that was typed. Beside it: User-Mode Linux, booted from an optimised image of
the same peer, and QEMU's own ways to move the guest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.figure import Bar
from bench.guests import LIMIT, PROMPT, boot_initramfs
from bench.harness import Bench, BenchError
from bench.links import ours
from bench.links import suite as words
from bench.links.boots import LinkRun, Plan, run_link
from bench.links.contenders import PROFILED
from bench.links.control import doubts_of_local, doubts_of_others, doubts_of_transfer
from bench.links.link import Link
from bench.links.network import Host, network
from bench.links.qemu_rivals import COPIED, PRECOPY
from bench.links.rig import Boot, Contender, Rig, listen_at, node_on, seed
from bench.links.sample import RECEIVED, TIME
from bench.links.suite import Suite, run_suite
from bench.processes import Argument, run, run_json, tail
from tools.console import Console, ConsoleError

_LINKS = "8748,1507,613"
_FAST = Link(1e9)
_GUEST = "p2pcloop"
"""Its host name, as in the prompt that the image shows without one."""
_BOOT_LIMIT = 600.0
"""Seconds: without KVM, on a busy machine."""

_IDLE_SECONDS = 10.0
"""How long the guest stands at its prompt before it is suspended. Without KVM an image's services
take that long to come to rest, and what still runs at a suspend runs on at each resume."""

_PORT = 7099
"""Of the seeder: its address is in the state's link, which is made once for all lines."""

RESUMED, HERE = "p2pcloop-resume", "p2pcloop-resume-here"
WITHOUT_KERNEL = "p2pcloop-resume-no-kernel"

SECONDS = {8748e3: 0.9, 1507e3: 2.0, 613e3: 4.0}
"""The most that a resume may take, by the link's bytes a second."""

OF_BOOT = {8748e3: 0.4, 1507e3: 0.55, 613e3: 0.5}
"""The most that it may take, divided by an optimised boot of User-Mode Linux."""

OF_PRECOPY, MOST_BYTES = 0.1, 1.6e6
_FOREIGN_RATE = 1507e3
"""QEMU's own ways are tried on this link alone: over slower ones they take minutes."""


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = words.parser(
        "state", "Resume a guest from a peer until it answers, beside other ways.", rounds=3
    )
    parser.add_argument(
        "--links",
        type=words.links,
        default=words.links(_LINKS),
        metavar="LINK,...",
        help=f"rates in KB/s of 1000 bytes or in Mbit, and round trips (default {_LINKS})",
    )
    parser.add_argument(
        "--ours", action="store_true", help="without QEMU's own ways, which take minutes"
    )
    words.add_patience(parser)
    return parser.parse_args(args)


def main(args: Sequence[str]) -> int:
    """Resume, print times and bytes, write the JSON; an exit code as `run_suite`."""
    return run_suite("state", args, parse(args), _measure)


@dataclass(frozen=True, slots=True)
class State:
    """A state that a seeder has.

    Attributes:
        home: of the seeder's node.
        link: to the state.
    """

    home: Path
    link: str


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    runs = []
    state = _made_state(suite.bench)
    resume = Contender(RESUMED, _ABOUT, partial(_cold, state, own_cache=False))
    unknown = Contender(WITHOUT_KERNEL, _ABOUT_UNKNOWN, partial(_cold, state, own_cache=True))
    here = Contender(HERE, _ABOUT_HERE, partial(_here, state))
    for number, link in enumerate(options.links):
        place = suite.bench.work / str(number)
        place.mkdir()
        others = [] if options.ours or link.rate != _FOREIGN_RATE else [PRECOPY, COPIED]
        contenders = [resume, unknown, ours.PROFILED, *others]
        plan = Plan(
            contenders, options.rounds, LIMIT, suite.group, options.patience,
            local=here,
            arrive=at_answer,
        )  # fmt: skip
        runs.append(run_link(link, plan, replace(suite.bench, work=place), suite.tell))
    figures = [figure for each in runs for figure in each.figures().values()]
    judged = [bar for each in runs for bar in bars(each)]
    suite.write(figures, judged)
    return suite.judge(judged)


def at_answer(console: Console, _reader: Host, _place: Path, limit: float) -> float:
    """Wait until the shell answers. What is typed is held until a guest that boots reads it."""
    console.send(b"\r")  # QEMU's precopy loses the first key
    console.run("true", limit)
    return time.monotonic()


@contextmanager
def resumed(
    rig: Rig,
    host: Host,
    link: str,
    home: Path,
    place: Path,
    *more: str,
    own_cache: bool = False,
) -> Iterator[Console]:
    """`p2pcloop resume` on a host; its command and the start of its p2pcloopd included.

    Args:
        own_cache: with an empty cache, so without the guest's kernel.
    """
    key = link.partition("x.p2pcloop=")[2].partition("/")[0]
    argv: list[Argument] = [*host.inside]
    argv += ["env", f"XDG_CACHE_HOME={place / 'cache'}"] if own_cache else []
    argv += [rig.bench.p2pcloop, "resume", link, "--trust", key]
    argv += ["--home", home, "--cpu", str(rig.bench.cpu), *more]
    log, errors = place / "guest.log", place / "resume.log"
    try:
        with Console([*map(str, argv)], log=log, errors=errors, patience=0) as console:
            yield console
    except ConsoleError as err:
        raise BenchError(f"p2pcloop resume: {err}: {tail(errors)}") from err


def publish_state(rig: Rig, home: Path) -> str:
    """Boot the image in QEMU on the seeder, and suspend it, with a rehearsal; returns the state's
    link."""
    name = seed(rig.bench, rig.seeder, home, rig.bench.cloop)["name"]
    argv: list[Argument] = [*rig.seeder.inside, rig.bench.p2pcloop, "boot", name, "--home", home]
    argv += ["--vm", "qemu", "--name", _GUEST, "--mem", "512M", "--net", "none"]
    argv += ["--cpu", str(rig.bench.cpu)]
    log, errors = home.parent / "record.log", home.parent / "boot.log"
    ask: list[Argument] = [*rig.seeder.inside, rig.bench.p2pcloop]
    with Console([*map(str, argv)], log=log, errors=errors) as console:
        console.expect(PROMPT, _BOOT_LIMIT)
        time.sleep(_IDLE_SECONDS)
        told = run_json(
            [*ask, "suspend", _GUEST, "--publish", "state", "--public", "--json", "--home", home]
        )
        console.wait(LIMIT)
    return str(told["link"])


def _made_state(bench: Bench) -> State:
    """Make a state, once for all lines: without KVM the boot takes longer than all resumes."""
    home = bench.work / "state"
    with network(_FAST, ("seeder", "reader"), bench.work) as (seeder, reader):
        rig = Rig(bench, boot_initramfs(bench), seeder, reader)
        with node_on(bench, seeder, home):
            listen_at(seeder, home, _PORT)
            return State(home, publish_state(rig, home))


@contextmanager
def seeding(rig: Rig, state: State) -> Iterator[None]:
    """The seeder's node serves the state."""
    argv: list[Argument] = [*rig.seeder.inside, rig.bench.p2pcloop, "daemon"]
    run([*argv, "start", "--home", state.home])
    try:
        yield
    finally:
        run([*argv, "stop", "--home", state.home])


@contextmanager
def _cold(state: State, rig: Rig, _shared: Path, *, own_cache: bool) -> Iterator[Boot]:
    @contextmanager
    def boot(place: Path, _limit: float) -> Iterator[Console]:
        with (
            node_on(rig.bench, rig.reader, place / "home") as home,
            resumed(rig, rig.reader, state.link, home, place, own_cache=own_cache) as console,
        ):
            yield console

    with seeding(rig, state):
        yield boot


@contextmanager
def _here(state: State, rig: Rig, _shared: Path) -> Iterator[Boot]:
    @contextmanager
    def boot(place: Path, _limit: float) -> Iterator[Console]:
        with resumed(rig, rig.seeder, state.link, state.home, place) as console:
            yield console

    yield boot


_ABOUT = "p2pcloop resume of a state by its link, with an empty home; its kernel is here"
_ABOUT_UNKNOWN = "the same on a machine that has started no guest with that kernel"
_ABOUT_HERE = "the same on the machine that made it: no link"


def bars(found: LinkRun) -> list[Bar]:
    """The bars of resumes on one link."""
    figures = {key: figure.median for key, figure in found.figures().items()}
    doubts = [*doubts_of_transfer(found.link, found.control), *doubts_of_local(found.samples[HERE])]

    def bar(what: str, unit: str, limit: float | None, other: str | None = None) -> Bar:
        names = [RESUMED, *([other] if other else [])]
        own = list(doubts) if what == TIME else []
        for name in names if what == TIME else []:
            usages = [sample.usage for sample in found.samples[name]]
            own += doubts_of_others(f"{name} ran", usages)
        base = None if other is None else figures[other, what]
        title = f"resume, {what}{f' / {other}' if other else ''}, {found.link}"
        return Bar(title, unit, figures[RESUMED, what], base, limit, doubts=tuple(own))

    rate = found.link.rate
    judged = [bar(TIME, "s", SECONDS.get(rate)), bar(RECEIVED, "B", MOST_BYTES)]
    judged.append(bar(TIME, "s", OF_BOOT.get(rate), PROFILED))
    judged += [
        bar(what, unit, None, WITHOUT_KERNEL) for what, unit in ((TIME, "s"), (RECEIVED, "B"))
    ]
    for rival, limit in ((PRECOPY.name, OF_PRECOPY), (COPIED.name, None)):
        if found.samples.get(rival):
            judged.append(bar(TIME, "s", limit, rival))
    return judged
