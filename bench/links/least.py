"""What a boot cannot do without, whoever boots: taken from one whose reads are recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.boot_bytes import touched_bytes
from bench.guests import LIMIT, LOGIN
from bench.harness import Bench
from bench.links.packed import first_touches, packed_bytes
from bench.trace import Read, record


@dataclass(frozen=True, slots=True)
class Least:
    """Bytes, by two ways of keeping an image.

    Attributes:
        packed: W: the touched blocks, packed as well as can be.
        touched: the cloop's compressed chunks that are touched.
    """

    packed: int
    touched: int


def record_boot(bench: Bench) -> list[Read]:
    """What a guest reads until the login prompt, and when."""
    place = bench.work / "record"
    place.mkdir(exist_ok=True)
    return record(replace(bench, work=place), lambda console: console.expect(LOGIN, LIMIT))


def least_of(bench: Bench, reads: Sequence[Read]) -> Least:
    """Bytes that these reads need."""
    ranges = [(read.offset, read.length) for read in reads]
    return Least(
        packed_bytes(bench.image, first_touches(ranges)), touched_bytes(bench.cloop, ranges)
    )
