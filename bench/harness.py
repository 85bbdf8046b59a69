"""Run contenders turn about, and hold medians of the same run against bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.figure import Bar, Figure, Report, Started

Values = Mapping[str, float]
Contenders = Mapping[str, Callable[[], Values]]


class BenchError(Exception):
    """A measure could not be taken; the message says why and names the log."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The means of every measure.

    Attributes:
        image: the raw image.
        cloop: the same image as a cloop file.
        p2pcloop: the program that is measured.
        work: an empty directory for this run, on a disk.
        cpu: the one processor that every guest is pinned to.
        profile: of the image, as `p2pcloop profile export` writes it; a file that is not there yet
            is written by the first that records one. None: each records its own.
    """

    image: Path
    cloop: Path
    p2pcloop: Path
    work: Path
    cpu: int
    profile: Path | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A bar to judge: a value of ours, divided by another contender's if there is a `base`.

    Attributes:
        ours: contender and value.
        bar: the limit of the ratio, or of the value without a base; None for no limit.
        base: contender and value.
        at_least: whether the bar is a lower limit.
    """

    title: str
    ours: tuple[str, str]
    bar: float | None
    base: tuple[str, str] | None = None
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """Something to measure.

    Attributes:
        units: of each value that a contender returns, by its name.
        contenders: enters the servers that all rounds share and yields a callable for each
            contender, which runs it once and returns its values.
    """

    name: str
    about: str
    units: Mapping[str, str]
    rows: Sequence[Row]
    contenders: Callable[[Bench], AbstractContextManager[Contenders]]


Samples = dict[str, list[dict[str, float]]]
"""Of each contender, the values of each round."""


def run_measure(
    measure: Measure, bench: Bench, rounds: int, started: Started, tell: Callable[[str], None]
) -> Report:
    """Take `rounds` samples of every contender, the order turning by one each round.

    An error of the measure is kept in the report, so that others can still be taken.
    """
    samples: Samples = {}
    error = None
    try:
        with measure.contenders(bench) as contenders:
            labels = list(contenders)
            for number in range(rounds):
                turn = number % len(labels)
                for label in labels[turn:] + labels[:turn]:
                    tell(f"{measure.name}: round {number + 1} of {rounds}: {label}")
                    values = dict(contenders[label]())
                    samples.setdefault(label, []).append(values)
                    tell("    " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))
    except BenchError as err:
        error = str(err)
        tell(f"{measure.name}: {err}")
    figures = _figures(measure, samples)
    bars = () if error else _bars(measure, figures)
    return Report(measure.name, started.over(), tuple(figures.values()), bars, error)


Figures = dict[tuple[str, str], Figure]
"""By contender and value."""


def _figures(measure: Measure, samples: Samples) -> Figures:
    return {
        (label, name): Figure(name, label, measure.units[name], tuple(each[name] for each in taken))
        for label, taken in samples.items()
        for name in taken[0]
    }


def _bars(measure: Measure, figures: Figures) -> tuple[Bar, ...]:
    return tuple(
        Bar(
            row.title,
            figures[row.ours].unit,
            figures[row.ours].median,
            None if row.base is None else figures[row.base].median,
            row.bar,
            row.at_least,
        )
        for row in measure.rows
    )
