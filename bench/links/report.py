"""The figures of `tools/bench links` as tables and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from bench.links.bar import REFUSED
from bench.links.boots import LinkRun
from bench.links.contenders import PLAIN, PROFILED
from bench.links.figures import Line, LinkFigures, bars
from bench.links.sample import Figure, ratio


def table(found: LinkFigures) -> Table:
    """One link: each contender's medians, and ratios where they may be told."""
    ours = [name for name in (PLAIN, PROFILED) if name in found.lines]
    least = found.least
    title = (
        f"{found.link}: limit {found.limit:.1f} s"
        f" (W {least.packed / 1e6:.2f} MB, chunks touched {least.touched / 1e6:.2f} MB)"
    )
    shown = Table("boot", "s", "/ limit", "MB received", "/ W", "MB sent", "CPU s", title=title)
    for name in ours:
        shown.add_column(f"{name} / it")
    for line in found.lines.values():
        shown.add_row(*_row(found, line), *(_against(found, name, line) for name in ours))
    return shown


def _row(found: LinkFigures, line: Line) -> tuple[str, ...]:
    of_limit = _times(line.seconds, found.limit)
    received = Figure(line.received.value / 1e6, line.received.bound)
    return (
        line.name,
        line.seconds.text(),
        REFUSED if found.doubts(line.name) else of_limit,
        received.text(2),
        _times(line.received, found.least.packed),
        f"{line.sent / 1e6:.2f}",
        "" if line.cpu is None else f"{line.cpu:.1f}",
    )


def _times(figure: Figure, by: float) -> str:
    return Figure(figure.value / by, figure.bound).text(2)


def _against(found: LinkFigures, ours: str, line: Line) -> str:
    if line.name == ours:
        return ""
    if found.doubts(ours, line.name):
        return REFUSED
    return ratio(found.lines[ours].seconds, line.seconds)


def as_json(run: LinkRun, found: LinkFigures) -> dict[str, Any]:
    """One link, with every sample."""
    return {
        "link": asdict(run.link),
        "control": asdict(run.control),
        "limit": found.limit,
        "least": asdict(found.least),
        "lines": {name: asdict(line) for name, line in found.lines.items()},
        "bars": [asdict(bar) | {"reached": bar.reached} for bar in bars(found)],
        "samples": {name: [asdict(s) for s in samples] for name, samples in run.samples.items()},
    }
