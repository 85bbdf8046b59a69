"""`tools/bench page`: docs/performance.md, made of the newest report of each measure.

The reports lie in docs/measurements/current/, as a rule one file for each measure. A new report
takes the place of the old one: `tools/bench page build/bench/fetch-20261129-101500.json`.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from bench.figure import Bar, Figure, Report, as_json, read_report
from bench.run_setup import CHECKOUT

CURRENT = CHECKOUT / "docs/measurements/current"
PAGE = CHECKOUT / "docs/performance.md"

SECTIONS = {
    "links": "Boots over slow lines",
    "crowd": "Many nodes that boot at once",
    "missing": "One missing chunk, over a line with a round trip",
    "fetch": "One missing chunk, over loopback",
    "only-source": "A foreign client as the only source",
    "kept": "The next version of an image, with the profile of the one before",
    "download": "A whole image",
    "twice": "Bytes that are received although they are here",
    "first-block": "Before the first block of a large image",
    "boot": "Boots over loopback",
    "start": "The start of a guest",
    "boot-readonly": "Roots that cannot be written",
    "desktop": "A desktop",
    "netboot": "A machine that boots over the network",
    "state": "A suspended guest goes on",
    "state-desktop": "A suspended desktop goes on",
    "state-crowd": "Many who resume one state at once",
    "migrate": "A running guest moves, and comes back",
    "guest-net": "The network of a guest",
    "guest-reads": "Reads in the guest",
    "nbd-reads": "Reads over NBD",
    "cloop-reads": "Reads of a cloop V4.0 over NBD",
    "mount": "An image as a file",
    "stack": "A stack of 20 layers",
    "plan": "One decision of what to fetch next",
    "memory": "Memory",
    "many": "Eight guests of one image",
    "serve": "The cost of comparing pieces before they are served",
    "seed": "Seeding a cloop",
    "cloop-seed": "Seeding a cloop V4.0",
    "pack": "Packing a raw image",
    "cloop-write": "Writing a cloop V2.0",
    "publish": "Publishing changes",
    "upgrade": "Bytes that an upgrade moves",
    "help": "The start of the command",
    "ps": "The list of guests",
    "status": "The state of a node with 500 images",
    "web": "The web page of such a node",
}
"""The headings of the page, in order, by measure."""

_WIDTH = 100
_HEAD = """\
# Performance

<!-- Made by `tools/bench page` of docs/measurements/current/. Do not edit it. -->

The newest figure of each measure, with the command that repeats it. [measuring.md](measuring.md)
says how each is taken and what a bar is; [measurements/](measurements/README.md) has older
measurements by date. Every figure is the median of its rounds. A ratio is of two medians of the
same run, and `—` stands for one that other work on the machine made meaningless.

The load is the load average of one minute at the start and at the end of a run. From a load of
about {processors} on, the seconds are those of a busy machine: only ratios and bytes mean much.

The machine: {machine}.
"""


class PageError(Exception):
    """The reports make no page; the message says why."""


def main(args: Sequence[str]) -> int:
    """Take reports over and write the page; 0 if it is written, 1 if the reports make none."""
    parser = argparse.ArgumentParser(
        prog="tools/bench page",
        description="Write docs/performance.md from docs/measurements/current/.",
    )
    parser.add_argument(
        "reports",
        nargs="*",
        type=Path,
        metavar="REPORT",
        help="a report in build/bench/, to take the place of the one before of its measure",
    )
    options = parser.parse_args(args)
    try:
        for report in map(read_report, options.reports):
            taken_over(report, CURRENT)
        PAGE.write_text(page(current(CURRENT)))
    except (PageError, ValueError) as err:
        print(f"tools/bench: {err}")
        return 1
    print(PAGE)
    return 0


def taken_over(report: Report, folder: Path) -> None:
    """Write a report into `folder`, over the one before of the same measure.

    Raises:
        PageError: it is not complete, or its measure has no place on the page.
    """
    if report.error:
        raise PageError(f"{report.name} was not measured: {report.error}")
    if report.name not in SECTIONS:
        raise PageError(f"{report.name} has no section in bench/performance_page.py")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{report.name}.json").write_text(as_json(report))


def current(folder: Path) -> list[Report]:
    """The reports of a folder, in the order of the page."""
    reports = [
        read_report(path) for path in sorted(folder.glob("*.json"), key=lambda path: path.stem)
    ]
    order = list(SECTIONS)
    return sorted(reports, key=lambda report: order.index(report.name))


def page(reports: Sequence[Report]) -> str:
    """The text of the page.

    Raises:
        PageError: there are no reports.
    """
    if not reports:
        raise PageError(f"there are no reports in {CURRENT}")
    machines = [_machine(report) for report in reports]
    usual = max(machines, key=machines.count)
    processors = next(r for r in reports if _machine(r) == usual).run.machine["processors"]
    lines = [_HEAD.format(machine=usual, processors=processors)]
    for name, heading in SECTIONS.items():
        chosen = [report for report in reports if report.name == name]
        if chosen:
            lines += [f"## {heading}", ""]
        for report in chosen:
            lines += _run(report, usual)
    return "\n".join(lines)


def _machine(report: Report) -> str:
    facts = report.run.machine
    memory = int(facts["memory_bytes"]) / (1 << 30)
    return f"{facts['processors']} processors, {facts['processor']}, {memory:.0f} GiB of memory"


def _run(report: Report, usual: str) -> list[str]:
    """One run: its command, its facts, its tables. A machine that is not the usual one is named."""
    run = report.run
    facts = [_date(run.began), _load(run.load), f"guest kernel {run.machine['guest_kernel']}"]
    if _machine(report) != usual:
        facts.append(f"another machine: {_machine(report)}")
    told = textwrap.wrap(f"{', '.join(facts)}. {run.note}", _WIDTH, break_on_hyphens=False)
    lines = [f"    {run.command}", "", *told, ""]
    for table in (*_grids(report.figures), _bars(report.bars)):
        if table:
            lines += [*table, ""]
    return lines


def _date(text: str) -> str:
    moment = datetime.fromisoformat(text)
    return f"{moment.day} {moment:%B %Y}"


def _load(load: tuple[float, float] | None) -> str:
    return "load not recorded" if load is None else f"load {load[0]:.1f} to {load[1]:.1f}"


def _grids(figures: Sequence[Figure]) -> Iterable[list[str]]:
    """A table for each thing that was measured under several conditions: a column for each."""
    for what in dict.fromkeys(figure.what for figure in figures if figure.where):
        chosen = [figure for figure in figures if figure.what == what and figure.where]
        places = list(dict.fromkeys(figure.where for figure in chosen))
        cells = {(figure.by, figure.where): _cell(figure) for figure in chosen}
        names = dict.fromkeys(figure.by for figure in chosen)
        yield [
            *_header([what, *places]),
            *(_line([name, *(cells.get((name, place), "") for place in places)]) for name in names),
        ]


def _cell(figure: Figure) -> str:
    shown = figure.median.with_unit(figure.unit)
    return f"**{shown}**" if figure.by.startswith("p2pcloop") else shown


def _bars(bars: Sequence[Bar]) -> list[str]:
    if not bars:
        return []
    return [
        *_header(["held against its bar", "p2pcloop", "against", "ratio", "bar", ""]),
        *(_line([bar.title, *bar.cells, _verdict(bar)]) for bar in bars),
    ]


def _verdict(bar: Bar) -> str:
    if bar.limit is None:
        return ""
    return {True: "reached", False: "**missed**", None: "not judged"}[bar.reached]


def _header(cells: Sequence[str]) -> list[str]:
    return [_line(cells), _line(["---"] * len(cells))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")
