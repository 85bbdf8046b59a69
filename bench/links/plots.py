"""Figures as SVG, beside the JSON. The same figures always make the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Sheet

from bench.figure import Quantity
from bench.links.boot_figures import LinkFigures
from bench.links.contenders import LOCAL
from bench.links.sample import RECEIVED, TIME

Point = tuple[float, float]
Series = Mapping[str, Sequence[Point]]

_SIZE = (7.5, 4.5)  # inches
_MARKERS = "osDvP<>pX*"


def time_against_link(links: Sequence[LinkFigures], path: Path) -> None:
    """Seconds to the login prompt, of each contender; an arrow marks a bound."""
    names = links[0].names
    values = {name: [found.median(name, TIME) for found in links] for name in names}
    values["limit"] = [Quantity(found.limit) for found in links]
    _over_links(links, values, "seconds to the login prompt", path)


def bytes_against_link(links: Sequence[LinkFigures], path: Path) -> None:
    """Megabytes that the reader received until then."""
    names = [name for name in links[0].names if name != LOCAL.name]
    values = {
        name: [found.median(name, RECEIVED) / Quantity(1e6) for found in links] for name in names
    }
    values["W"] = [Quantity(found.least.packed / 1e6) for found in links]
    _over_links(links, values, "MB received until the login prompt", path)


def last_against_number(series: Series, path: Path) -> None:
    """How many nodes booted at once, and when the last of them had; a line for each kind."""
    sheet, axes = _sheet("nodes that boot at once", "seconds until the last has booted")
    _draw(axes, series, "-")
    axes.set_ylim(bottom=0)
    _save(sheet, axes, path)


def misses_over_time(series: Series, path: Path) -> None:
    """When a read of a boot began to wait, and for how many milliseconds; dots for each boot."""
    sheet, axes = _sheet("seconds since the boot began", "milliseconds that a read waited")
    _draw(axes, series, "")
    axes.set_yscale("log")
    _save(sheet, axes, path)


def _over_links(
    links: Sequence[LinkFigures], values: Mapping[str, Sequence[Quantity]], label: str, path: Path
) -> None:
    sheet, axes = _sheet("link", label)
    points = {
        name: [(float(at), figure.value) for at, figure in enumerate(figures)]
        for name, figures in values.items()
    }
    _draw(axes, points, "-")
    for figures in values.values():
        for at, figure in enumerate(figures):
            if figure.bound:
                axes.annotate("↑", (at, figure.value), ha="center", va="bottom")
    axes.set_yscale("log")
    axes.set_xticks(range(len(links)), [str(found.link) for found in links])
    _save(sheet, axes, path)


def _sheet(x: str, y: str) -> tuple[Sheet, Axes]:
    sheet = Sheet(figsize=_SIZE, layout="constrained")
    axes = sheet.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return sheet, axes


def _draw(axes: Axes, series: Series, line: str) -> None:
    for number, (name, points) in enumerate(series.items()):
        across, up = [x for x, _ in points], [y for _, y in points]
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(across, up, line, marker=marker, markersize=4, linewidth=1, label=name)


def _save(sheet: Sheet, axes: Axes, path: Path) -> None:
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    with mpl.rc_context({"svg.hashsalt": "p2pcloop"}):
        sheet.savefig(path, format="svg", metadata={"Date": None})
