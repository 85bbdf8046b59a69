"""Doubts: whether a ratio would describe the contenders, or the machine that they ran on.

Before the boots a plain transfer must reach the link's rate and its round trip. The local boot runs
among them, and its time must not vary. Other programs must not have used the processors.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import BenchError
from bench.links.link import Link
from bench.links.rig import Rig, listening
from bench.links.sample import Sample
from bench.links.usage import Meter, Usage
from bench.processes import Argument

MIN_RATE, MAX_RATE = 0.95, 1.05
"""Share of the link's rate that a plain transfer must have, at the interface."""

MAX_LATE = 0.003
"""Seconds by which the round trip may be longer than the link's own."""

MAX_SPREAD = 1.3
"""How many times the shortest local boot the longest may take."""

MAX_OTHERS = 0.05
"""Share of all processors that may go elsewhere in the median boot: of two, that is up to a tenth
of the one that the guest is pinned to."""

MAX_BUSY = 0.9
"""Share of all processors that may be in use: with more, the processors are the limit."""

_PORT = 5001
_SETTLE, _SECONDS, _LOOK = 1.0, 2.0, 1.0


@dataclass(frozen=True, slots=True)
class Control:
    """The result of the plain transfer.

    Attributes:
        share: of the link's rate.
        round_trip: seconds of a TCP handshake.
    """

    share: float
    round_trip: float


def plain_transfer(rig: Rig, link: Link, log: Path) -> Control:
    """Transfer for 3 s; the first one, in which TCP finds the rate, is not counted."""
    program, place = Path(__file__).with_name("transfer.py"), [rig.seeder.address, str(_PORT)]
    send: list[Argument] = [sys.executable, program, "send", *place]
    receive = [*rig.reader.inside, sys.executable, str(program), "receive", *place]
    with (
        listening(rig.seeder, send, _PORT, log),
        subprocess.Popen(receive, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as receiver,
    ):
        try:
            assert receiver.stdout is not None
            told = receiver.stdout.readline()
            if not told:
                raise BenchError("the control transfer found no seeder; its messages are above")
            time.sleep(_SETTLE)
            start, before = time.monotonic(), rig.reader.traffic()
            time.sleep(_SECONDS)
            received = rig.reader.traffic().since(before).received
            return Control(received / (time.monotonic() - start) / link.rate, float(told))
        finally:
            receiver.kill()


def wait_until_quiet(group: Path | None, patience: float) -> None:
    """Wait until nothing else uses the processors much, but no longer than `patience` seconds.

    Args:
        group: as of Meter; None: no wait.
    """
    deadline = time.monotonic() + patience
    while group and time.monotonic() < deadline:
        meter = Meter(group)
        time.sleep(_LOOK)
        usage = meter.usage()
        if not usage or usage.others <= MAX_OTHERS / 2:
            return


def doubts_of_transfer(link: Link, control: Control) -> list[str]:
    """Why the link is not as it should be; empty if it is."""
    doubts = []
    if not MIN_RATE <= control.share <= MAX_RATE:
        doubts.append(f"a plain transfer had {control.share:.0%} of the link's rate")
    if not link.delay <= control.round_trip <= link.delay + MAX_LATE:
        doubts.append(f"a round trip took {control.round_trip * 1000:.1f} ms")
    return doubts


def doubts_of_local(local: Sequence[Sample]) -> list[str]:
    """Why the machine was not equally quick throughout; empty if it was."""
    times = [sample.seconds for sample in local]
    if max(times) > MAX_SPREAD * min(times):
        return [f"the local boot took {min(times):.1f} to {max(times):.1f} s"]
    return []


def doubts_of_others(what: str, usages: Sequence[Usage | None]) -> list[str]:
    """Why times cannot be judged: other programs used the processors.

    Args:
        what: the event meanwhile, for the text.
    """
    shares = [usage.others for usage in usages if usage]
    if shares and (share := statistics.median(shares)) > MAX_OTHERS:
        return [f"others had {share:.0%} of the processors while {what}"]
    return []


def doubts_of_usage(what: str, usages: Sequence[Usage | None]) -> list[str]:
    """The same, or because many nodes on one machine used all that there is of them."""
    doubts, shares = doubts_of_others(what, usages), [usage.busy for usage in usages if usage]
    if shares and (share := statistics.median(shares)) > MAX_BUSY:
        doubts.append(f"the processors were {share:.0%} busy while {what}")
    return doubts
