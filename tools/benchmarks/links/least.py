"""What a boot cannot do without, whoever boots: taken from one whose reads are recorded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2pcloopd.guest.recording import AFTER_PROMPT
from tools.benchmarks.boot_bytes import touched_bytes
from tools.benchmarks.guests import LIMIT, LOGIN
from tools.benchmarks.harness import Bench
from tools.benchmarks.links.packed import first_touches, packed_bytes
from tools.benchmarks.trace import Read, record
from tools.console import Console


@dataclass(frozen=True, slots=True)
class Least:
    """Bytes, by two ways of keeping an image.

    Attributes:
        packed: W: the blocks that a profile of the boot has, packed as well as can be. A profile
            ends a second after the login prompt.
        touched: the cloop's compressed chunks that are touched up to the prompt itself.
    """

    packed: int
    touched: int


def record_boot(bench: Bench, after: float = 0.0) -> list[Read]:
    """What a guest reads until so many seconds after the login prompt, and when."""
    place = bench.work / f"record-{after:g}"
    place.mkdir(exist_ok=True)

    def until(console: Console) -> None:
        console.expect(LOGIN, LIMIT)
        time.sleep(after)

    return record(replace(bench, work=place), until)


def least_of(bench: Bench) -> Least:
    """Record two boots, one of them as a profile is; what they need."""
    return Least(
        packed_bytes(bench.image, first_touches(_ranges(record_boot(bench, AFTER_PROMPT)))),
        touched_bytes(bench.cloop, _ranges(record_boot(bench))),
    )


def _ranges(reads: Sequence[Read]) -> list[tuple[int, int]]:
    return [(read.offset, read.length) for read in reads]
