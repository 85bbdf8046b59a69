"""Run contenders turn about, take medians, compare within one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Values = Mapping[str, float]
Contenders = Mapping[str, Callable[[], Values]]


class BenchError(Exception):
    """A measure could not be taken; the message says why and names the log."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measure works with.

    Attributes:
        image: the raw image.
        cloop: the same image as a cloop file.
        p2pcloop: the program.
        work: an empty directory for this run, on a disk.
        cpu: the one processor that every guest is pinned to.
    """

    image: Path
    cloop: Path
    p2pcloop: Path
    work: Path
    cpu: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a value of ours, held against another's or against a number.

    Attributes:
        ours: contender and value.
        base: contender and value to divide by; None where the bar is on the value itself.
        bar: the limit of the ratio, or of the value where there is no base; None for a figure that
            is told and not judged.
        at_least: whether the bar is a lower limit.
    """

    title: str
    unit: str
    ours: tuple[str, str]
    bar: float | None
    base: tuple[str, str] | None = None
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """Something to measure.

    Attributes:
        contenders: enters what all rounds share (a seeder, a server) and yields a callable for
            each contender, which runs it once and returns its values.
    """

    name: str
    about: str
    rows: Sequence[Row]
    contenders: Callable[[Bench], AbstractContextManager[Contenders]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row with its figures: medians over all rounds."""

    row: Row
    ours: float
    base: float | None

    @property
    def compared(self) -> float:
        """What the bar is held against."""
        return self.ours if self.base is None else self.ours / self.base

    @property
    def reached(self) -> bool:
        """Whether the bar is reached, if there is one."""
        if self.row.bar is None:
            return True
        if self.row.at_least:
            return self.compared >= self.row.bar
        return self.compared <= self.row.bar


@dataclass(slots=True)
class Result:
    """What came of one measure: every sample, and the rows; or why there are none."""

    name: str
    samples: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The result in JSON's types."""
        rows = [
            asdict(o.row) | {"value": o.ours, "base_value": o.base}
            | {"compared": o.compared, "reached": o.reached}
            for o in self.outcomes
        ]  # fmt: skip
        return {"name": self.name, "error": self.error, "rows": rows, "samples": self.samples}


def run_measure(measure: Measure, bench: Bench, rounds: int, tell: Callable[[str], None]) -> Result:
    """Take `rounds` samples of every contender, the order turning by one each round.

    An error of the measure is kept in the result: others can still be taken.
    """
    result = Result(measure.name)
    try:
        with measure.contenders(bench) as contenders:
            labels = list(contenders)
            for number in range(rounds):
                turn = number % len(labels)
                for label in labels[turn:] + labels[:turn]:
                    tell(f"{measure.name}: round {number + 1} of {rounds}: {label}")
                    values = dict(contenders[label]())
                    result.samples.setdefault(label, []).append(values)
                    tell("    " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))
        result.outcomes = [_outcome(row, result) for row in measure.rows]
    except BenchError as err:
        result.error = str(err)
        tell(f"{measure.name}: {err}")
    return result


def _outcome(row: Row, result: Result) -> Outcome:
    return Outcome(
        row,
        _median(result, row.ours),
        None if row.base is None else _median(result, row.base),
    )


def _median(result: Result, value: tuple[str, str]) -> float:
    label, key = value
    return statistics.median(sample[key] for sample in result.samples[label])
