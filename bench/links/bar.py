"""Bars, and what figures came to against them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

from bench.links.sample import Figure

REFUSED = "—"
"""Stands for a ratio that would tell of the machine rather than of what ran on it."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar and what it was held against.

    Attributes:
        figure: the ratio.
        most: what it may be.
        doubts: why it is not told whether it was reached.
    """

    title: str
    figure: Figure
    most: float
    doubts: tuple[str, ...]

    @property
    def reached(self) -> bool | None:
        """Whether it is; None where that cannot be told."""
        if self.doubts:
            return None
        return self.figure.value <= self.most and not self.figure.bound


def bar_table(bars: Iterable[tuple[str, Bar]]) -> Table:
    """Bars, each with the link on which it was measured."""
    shown = Table("bar", "link", "measured", "at most", "")
    for link, bar in bars:
        measured = REFUSED if bar.reached is None else bar.figure.text(2)
        shown.add_row(bar.title, link, measured, f"{bar.most:g}", _verdict(bar))
    return shown


def _verdict(bar: Bar) -> str:
    if bar.reached is None:
        return "not told"
    return "[green]reached[/green]" if bar.reached else "[red]missed[/red]"
