"""Whether a ratio would tell of the contenders, or of the machine that they ran on.

Before the boots a plain transfer must reach the link's rate and its round trip. With them runs the
local boot, whose time may not vary; and nothing else may have used the processors.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.benchmarks.harness import BenchError
from tools.benchmarks.links.link import Link
from tools.benchmarks.links.rig import Rig, listening
from tools.benchmarks.links.sample import Sample
from tools.benchmarks.processes import Argument

LEAST_RATE, MOST_RATE = 0.95, 1.05
"""Share of the link's rate that a plain transfer must have, at the interface."""

MOST_LATE = 0.003
"""Seconds by which the round trip may be longer than the link's own."""

MOST_SPREAD = 1.3
"""How many times the shortest local boot the longest may take."""

MOST_OTHERS = 0.1
"""Share of all processors that may go elsewhere in the median boot."""

_PORT = 5001
_SETTLE, _SECONDS = 1.0, 2.0


@dataclass(frozen=True, slots=True)
class Control:
    """What the plain transfer came to.

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
                raise BenchError("the control transfer found no seeder; what it said is above")
            time.sleep(_SETTLE)
            start, before = time.monotonic(), rig.reader.traffic()
            time.sleep(_SECONDS)
            received = rig.reader.traffic().since(before).received
            return Control(received / (time.monotonic() - start) / link.rate, float(told))
        finally:
            receiver.kill()


def doubts_of_link(link: Link, control: Control, local: Sequence[Sample]) -> list[str]:
    """Why no ratio of this link may be printed; empty where they may."""
    doubts = []
    if not LEAST_RATE <= control.share <= MOST_RATE:
        doubts.append(f"a plain transfer had {control.share:.0%} of the link's rate")
    if not link.delay <= control.round_trip <= link.delay + MOST_LATE:
        doubts.append(f"a round trip took {control.round_trip * 1000:.1f} ms")
    times = [sample.seconds for sample in local]
    if times and max(times) > MOST_SPREAD * min(times):
        doubts.append(f"the local boot took {min(times):.1f} to {max(times):.1f} s")
    return doubts + doubts_of_load("local", local)


def doubts_of_load(name: str, samples: Sequence[Sample]) -> list[str]:
    """Why no ratio with these boots may be printed: others used the machine meanwhile."""
    shares = sorted(sample.others for sample in samples if sample.others is not None)
    if shares and (share := shares[len(shares) // 2]) > MOST_OTHERS:
        return [f"others had {share:.0%} of the processors while {name} booted"]
    return []
