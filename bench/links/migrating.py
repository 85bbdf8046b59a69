"""`tools/bench migrate`: a guest that runs moves to another machine over a slow line, and back.

The image is at the first machine alone. A script stands for ssh. The pause is what the guest's own
console tells: the time from the last line that it shows here to the first one that it shows there,
while a loop prints twenty a second.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.figure import Bar, Figure
from bench.guests import LIMIT, PROMPT, boot_initramfs
from bench.links import suite as words
from bench.links.control import doubts_of_usage
from bench.links.network import Host, network
from bench.links.rig import Rig, node_on, seed
from bench.links.suite import Suite, run_suite
from bench.links.usage import Meter
from bench.processes import Argument, run
from tools.console import Console

SECOND_HOP, PAUSE_SECONDS = 0.1, 2.0
"""The most that the way back takes of the way there, and that the guest stands still."""

_GUEST = "moves"
_BOOT_LIMIT = 600.0
"""Seconds: without KVM, on a busy machine."""

_MOVE_LIMIT = 900.0
_IDLE_SECONDS = 10.0
_TICK = b"tick"
_TICKS = f"while sleep 0.05; do echo {_TICK.decode()}; done"
_LOOK_SECONDS = 0.005
_AWAY_SECONDS = 5.0
"""Between the two moves."""


@dataclass(frozen=True, slots=True)
class Move:
    """One move of the guest.

    Attributes:
        seconds: of the command.
        received: bytes that crossed the line to where it went.
        pause: seconds without a line on its console.
    """

    seconds: float
    received: int
    pause: float


@dataclass(slots=True)
class _Watch:
    """Looks for new lines of the loop in consoles' logs. Those have our own messages, too.

    Attributes:
        seen: by its path, the monotonic times of the first line and of the last one.
    """

    paths: Sequence[Path]
    seen: dict[Path, tuple[float, float]] = field(default_factory=dict)
    _ends: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Sequence[Path]) -> _Watch:
        """Begin at the ends of what is there."""
        return cls(paths, _ends={path: path.stat().st_size for path in paths if path.exists()})

    def look(self) -> None:
        """Look once."""
        for path in filter(Path.exists, self.paths):
            with path.open("rb") as file:
                end = self._ends.get(path, 0)
                # A guest that comes back begins a new one.
                file.seek(0 if path.stat().st_size < end else end)
                data = file.read()
                self._ends[path] = file.tell()
            if _TICK in data:
                now = time.monotonic()
                self.seen[path] = self.seen.get(path, (now, now))[0], now


@contextmanager
def _watched(paths: Sequence[Path]) -> Iterator[_Watch]:
    watch, over = _Watch.of(paths), threading.Event()

    def run() -> None:
        while not over.wait(_LOOK_SECONDS):
            watch.look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    about = "Move a running guest over a line, and back."
    return words.parser("migrate", about, rounds=1, link_of="each host").parse_args(args)


def main(args: Sequence[str]) -> int:
    """Move it, print times and bytes, write the JSON; an exit code as `run_suite`."""
    return run_suite("migrate", args, parse(args), _measure)


def _measure(suite: Suite, options: argparse.Namespace) -> bool:
    there: list[Move] = []
    back: list[Move] = []
    with network(options.link, ("seeder", "reader"), suite.bench.work) as (one, other):
        rig = Rig(suite.bench, boot_initramfs(suite.bench), one, other)
        meter = Meter(suite.group)
        for number in range(options.rounds):
            place = suite.bench.work / str(number)
            place.mkdir()
            for moves, move in zip((there, back), _round(rig, place), strict=True):
                moves.append(move)
                suite.tell(f"round {number + 1} of {options.rounds}: {move}")
        doubts = tuple(doubts_of_usage("it ran", [meter.usage()]))
    where = str(options.link)
    figures = [
        Figure(what, by, unit, tuple(float(getattr(move, name)) for move in moves), where)
        for by, moves in (("there", there), ("back", back))
        for what, name, unit in (("move", "seconds", "s"), ("received", "received", "B"))
    ]
    figures.append(
        Figure("pause", "both ways", "s", tuple(m.pause for m in (*there, *back)), where)
    )
    first, first_bytes, second, second_bytes, pause = (figure.median for figure in figures)
    bars = [
        Bar("migrate, way back / way there", "s", second, first, SECOND_HOP, doubts=doubts),
        Bar("the same, bytes", "B", second_bytes, first_bytes, SECOND_HOP),
        Bar("migrate, pause", "s", pause, None, PAUSE_SECONDS, doubts=doubts),
    ]
    suite.write(figures, bars)
    return suite.judge(bars)


def _round(rig: Rig, place: Path) -> tuple[Move, Move]:
    """The guest is booted on the seeder, moves to the reader, and comes back."""
    with (
        node_on(rig.bench, rig.seeder, place / "one") as one,
        node_on(rig.bench, rig.reader, place / "other") as other,
    ):
        ssh = _ssh(rig, place, {"one": (rig.seeder, one), "other": (rig.reader, other)})
        name = seed(rig.bench, rig.seeder, one, rig.bench.cloop)["name"]
        argv: list[Argument] = [*rig.seeder.inside, rig.bench.p2pcloop, "boot", name, "--home", one]
        argv += ["--vm", "qemu", "--name", _GUEST, "--mem", "512M", "--net", "none"]
        argv += ["--cpu", str(rig.bench.cpu)]
        log, errors = place / "guest.log", place / "boot.log"
        with Console([*map(str, argv)], log=log, errors=errors) as console:
            console.expect(PROMPT, _BOOT_LIMIT)
            time.sleep(_IDLE_SECONDS)
            console.send_line(_TICKS)
            there = _move(rig, ssh, (rig.seeder, one), (rig.reader, other), "other")
            console.wait(LIMIT)
        time.sleep(_AWAY_SECONDS)
        back = _move(rig, ssh, (rig.reader, other), (rig.seeder, one), "one")
        argv = [*rig.seeder.inside, rig.bench.p2pcloop, "stop", _GUEST, "--time", "0"]
        run([*argv, "--home", one])
        return there, back


def _ssh(rig: Rig, place: Path, hosts: dict[str, tuple[Host, Path]]) -> Path:
    """A script that runs a command at a host by its name, as ssh would."""
    cases = "\n".join(
        f'{name}) export P2PCLOOP_HOME={home}; exec {" ".join(host.inside)} sh -c "$2";;'
        for name, (host, home) in hosts.items()
    )
    script = place / "ssh"
    script.write_text(
        f'#!/bin/sh\nexport PATH={rig.bench.p2pcloop.parent}:$PATH\ncase "$1" in\n{cases}\nesac\n'
    )
    script.chmod(0o755)
    return script


def _move(
    rig: Rig, ssh: Path, here: tuple[Host, Path], there: tuple[Host, Path], name: str
) -> Move:
    """Move the guest to a host that `ssh` knows by a name."""
    host, home = here
    argv: list[Argument] = [*host.inside, rig.bench.p2pcloop, "migrate", _GUEST, name]
    argv += ["--ssh", ssh, "--home", home]
    logs = [each / "guests" / _GUEST / "console.log" for each in (home, there[1])]
    before, begun = there[0].traffic(), time.monotonic()
    with _watched(logs) as watch:
        run(argv, limit=_MOVE_LIMIT)
        seconds, received = time.monotonic() - begun, there[0].traffic().since(before).received
        while logs[1] not in watch.seen and time.monotonic() < begun + _MOVE_LIMIT:
            time.sleep(0.05)
    return Move(seconds, received, watch.seen[logs[1]][0] - watch.seen[logs[0]][1])
