"""One boot as it was counted, and the figures of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.figure import Figure
from bench.links.usage import Usage

TIME, RECEIVED, SENT, PROCESSOR = "boot", "received", "sent", "processor time"
"""The names of the figures of boots."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One boot, from the start of its command to the login prompt.

    Attributes:
        seconds: how long it took; the time limit if it had not ended by then.
        exceeded: it had not.
        received, sent: bytes at the reader's interface meanwhile.
        usage: of the processors meanwhile; None if it is unknown.
    """

    seconds: float
    exceeded: bool
    received: int
    sent: int
    usage: Usage | None = None


def boot_figures(by: str, where: str, samples: Sequence[Sample]) -> list[Figure]:
    """The figures of the boots of one contender; of a boot that was cut short, bytes until then."""
    cut = tuple(number for number, sample in enumerate(samples) if sample.exceeded)
    own = tuple(sample.usage.own for sample in samples if sample.usage)
    received = tuple(float(sample.received) for sample in samples)
    sent = tuple(float(sample.sent) for sample in samples)
    return [
        Figure(TIME, by, "s", tuple(sample.seconds for sample in samples), where, cut),
        Figure(RECEIVED, by, "B", received, where, cut),
        Figure(SENT, by, "B", sent, where, cut),
        *([Figure(PROCESSOR, by, "s", own, where)] if own else []),
    ]
