"""What one boot came to, and medians of several that tell what is only a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.links.usage import Usage


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, or what it is at least.

    Attributes:
        bound: the true number is larger, by how much nobody knows.
    """

    value: float
    bound: bool = False

    def text(self, digits: int = 1) -> str:
        """As the table has it."""
        return f"{'> ' if self.bound else ''}{self.value:.{digits}f}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One boot, from the start of its command to the login prompt.

    Attributes:
        seconds: how long it took; the time limit where it had not ended by then.
        exceeded: it had not.
        received, sent: bytes at the reader's interface meanwhile.
        usage: of the processors meanwhile; None where unknown.
    """

    seconds: float
    exceeded: bool
    received: int
    sent: int
    usage: Usage | None = None


def median(figures: Sequence[Figure]) -> Figure:
    """The median; a bound where it is, or is between, one."""
    ordered = sorted(figures, key=lambda figure: (figure.bound, figure.value))
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return Figure((low.value + high.value) / 2, low.bound or high.bound)


def median_seconds(samples: Sequence[Sample]) -> Figure:
    """The median time of boots."""
    return median([Figure(sample.seconds, sample.exceeded) for sample in samples])


def median_bytes(samples: Sequence[Sample]) -> Figure:
    """The median of received bytes; of a boot that was cut short, those until then."""
    return median([Figure(sample.received, sample.exceeded) for sample in samples])


def ratio(ours: Figure, theirs: Figure) -> str:
    """How many times ours is theirs: `0.35`; `< 0.35` if theirs is a bound, `> 2.1` if ours is."""
    quotient = f"{ours.value / theirs.value:.2f}"
    match ours.bound, theirs.bound:
        case False, False:
            return quotient
        case True, False:
            return f"> {quotient}"
        case False, True:
            return f"< {quotient}"
        case _:
            return "unknown"
