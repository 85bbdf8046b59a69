"""A figure: the thing measured, its value in each round, and its run. And the JSON of all that.

All commands of `tools/bench` write the same file, a `Report`: one run (command, date, load,
machine), its figures, and the bars that they were held against. `bench/performance_page.py` makes
docs/performance.md of such files, `bench/compare.py` compares two of them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

HIDDEN = "—"
"""Stands for a ratio that would describe the machine rather than the program."""

_SCALES = {
    "B": ((1e5, 1e6, "MB"), (1e3, 1e3, "kB")),
    "s": ((0.1, 1.0, "s"), (1e-9, 1e-3, "ms")),
}
"""How a unit is shown: from which size on, the factor, and the other unit."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number, or a lower bound.

    Attributes:
        bound: the true number is larger, and it is unknown how much.
    """

    value: float
    bound: bool = False

    def __truediv__(self, other: Quantity) -> Quantity:
        """The ratio: a bound if the dividend is one, the most that it can be if the divisor is."""
        if not other.value:
            return Quantity(math.inf, self.bound)
        return Quantity(self.value / other.value, self.bound)

    def text(self, digits: int = 1) -> str:
        """With so many digits after the point: `8.5`, `> 120.0`."""
        return f"{'> ' if self.bound else ''}{self.value:,.{digits}f}"

    def with_unit(self, unit: str) -> str:
        """Three or four digits that count, and the unit: `8.53 s`, `15.1 MB`, `> 120 s`."""
        return ("> " if self.bound else "") + _scaled(self.value, unit, _digits)


def _digits(value: float) -> str:
    size = abs(value)
    text = f"{value:,.{0 if size >= 100 else 1 if size >= 20 else 2}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _scaled(value: float, unit: str, text: Callable[[float], str]) -> str:
    for least, factor, shown in _SCALES.get(unit, ()):
        if abs(value) >= least:
            return f"{text(value / factor)} {shown}"
    return f"{text(value)} {unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured, in every round of a run.

    Attributes:
        what: the thing, for example "boot".
        by: the program or setting, for example "nbdkit-file".
        where: the condition, for example a link; empty if there is only one.
        unit: "s", "B", "/s", ...; empty for a number of things or a share.
        values: one of each round.
        cut: rounds, from 0, that were ended at a time limit: their values are lower bounds.
    """

    what: str
    by: str
    unit: str
    values: tuple[float, ...]
    where: str = ""
    cut: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies a figure within a report."""
        return self.what, self.by, self.where

    @property
    def median(self) -> Quantity:
        """The median of all rounds; a bound if one of its values is."""
        found = [Quantity(value, number in self.cut) for number, value in enumerate(self.values)]
        ordered = sorted(found, key=lambda each: (each.bound, each.value))
        low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
        return Quantity((low.value + high.value) / 2, low.bound or high.bound)


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit, and the value that is held against it: `ours`, or `ours` divided by `base`.

    Attributes:
        unit: of `ours` and `base`.
        limit: None for a value that is shown and not judged.
        at_least: the limit is a lower one.
        doubts: reasons why the value says nothing; then the bar is not judged.
    """

    title: str
    unit: str
    ours: Quantity
    base: Quantity | None
    limit: float | None
    at_least: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def value(self) -> Quantity:
        """The value that the limit applies to."""
        return self.ours if self.base is None else self.ours / self.base

    @property
    def reached(self) -> bool | None:
        """Whether it is reached; True without a limit, None if that is in doubt."""
        if self.limit is None:
            return True
        if self.doubts:
            return None
        if self.at_least:
            return self.value.value >= self.limit
        return self.value.value <= self.limit and not self.value.bound

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Ours, the base, the ratio and the limit, as tables show them."""
        base = "" if self.base is None else self.base.with_unit(self.unit)
        ratio = "" if self.base is None else self.value.text(2)
        limit = ""
        if self.limit is not None:
            unit = self.unit if self.base is None else ""
            sign = "≥" if self.at_least else "≤"
            limit = f"{sign} {_scaled(self.limit, unit, '{:g}'.format)}"
        return self.ours.with_unit(self.unit), base, HIDDEN if self.doubts else ratio, limit


@dataclass(frozen=True, slots=True)
class Run:
    """When, where and by which command figures were taken.

    Attributes:
        command: repeats the run.
        began, ended: ISO 8601, UTC.
        load: load average of one minute at the start and at the end; None if it is unknown.
        machine: facts, see `bench.run_setup.machine_facts`.
        note: anything that a reader must know about this run.
    """

    command: str
    began: str
    ended: str
    load: tuple[float, float] | None
    machine: Mapping[str, str | int]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """A run that is not over."""

    command: str
    machine: Mapping[str, str | int]
    began: str
    load: float

    @classmethod
    def now(cls, command: str, machine: Mapping[str, str | int]) -> Started:
        """Start the clock of a run."""
        return cls(command, machine, _now(), os.getloadavg()[0])

    def over(self) -> Run:
        """The run that ends now."""
        load = (round(self.load, 2), round(os.getloadavg()[0], 2))
        return Run(self.command, self.began, _now(), load, self.machine)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one measure.

    Attributes:
        name: of the measure, as `tools/bench` takes it.
        error: why it is not complete; None if it is.
    """

    name: str
    run: Run
    figures: tuple[Figure, ...]
    bars: tuple[Bar, ...]
    error: str | None = None

    @property
    def reached(self) -> bool:
        """Whether all of it was measured and every bar is reached."""
        return self.error is None and all(bar.reached for bar in self.bars)


def write_report(report: Report, folder: Path) -> Path:
    """Write a report as JSON into a folder, named by measure and time; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = report.run.ended[:19].replace("-", "").replace(":", "").replace("T", "-")
    path = folder / f"{report.name}-{stamp}.json"
    path.write_text(as_json(report))
    return path


def as_json(report: Report) -> str:
    """A report as JSON, a line for each figure; ratios and verdicts are added for other readers."""
    told = asdict(report)
    for bar, fields in zip(report.bars, told["bars"], strict=True):
        fields |= {"ratio": round(bar.value.value, 4), "reached": bar.reached}
    figures, bars = (",\n".join(map(_line, told.pop(name))) for name in ("figures", "bars"))
    head = _line(told).removesuffix("}").replace(', "run": ', ',\n"run": ')
    return f'{head},\n"figures": [\n{figures}\n],\n"bars": [\n{bars}\n]}}\n'


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_report(path: Path) -> Report:
    """Read a report that `write_report` wrote.

    Raises:
        ValueError: it is no report; the message names the file.
    """
    try:
        told = json.loads(path.read_text())
        return Report(
            told["name"],
            _run(told["run"]),
            tuple(_figure(fields) for fields in told["figures"]),
            tuple(_bar(fields) for fields in told["bars"]),
            told["error"],
        )
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"{path} is no report of tools/bench: {err!r}") from err


def _run(fields: dict[str, Any]) -> Run:
    load = fields["load"]
    return Run(**(fields | {"load": None if load is None else tuple(load)}))


def _figure(fields: dict[str, Any]) -> Figure:
    return Figure(**(fields | {"values": tuple(fields["values"]), "cut": tuple(fields["cut"])}))


def _bar(fields: dict[str, Any]) -> Bar:
    base = fields["base"]
    return Bar(
        fields["title"],
        fields["unit"],
        Quantity(**fields["ours"]),
        None if base is None else Quantity(**base),
        fields["limit"],
        fields["at_least"],
        tuple(fields["doubts"]),
    )


def bar_table(bars: Sequence[Bar], *, ours: str = "p2pcloop", base: str = "against") -> Table:
    """All bars with their values and verdicts, for a terminal."""
    shown = Table("measure", ours, base, "ratio", "bar", "")
    for bar in bars:
        shown.add_row(bar.title, *bar.cells, _verdict(bar))
    return shown


def _verdict(bar: Bar) -> str:
    if bar.limit is None:
        return ""
    if bar.reached is None:
        return "not judged"
    return "[green]reached[/green]" if bar.reached else "[red]missed[/red]"
