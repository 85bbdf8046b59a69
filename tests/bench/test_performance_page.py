"""docs/performance.md is what `tools/bench page` makes of the reports beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import performance_page
from bench.__main__ import MEASURES, SUITES
from bench.figure import Bar, Figure, Quantity, Report, Run

MACHINE: dict[str, str | int] = {
    "processor": "a processor",
    "processors": 2,
    "memory_bytes": 24 << 30,
    "guest_kernel": "7.2",
}
RUN = Run(
    "tools/bench links --rounds 2", "2026-11-29T10:00:00+00:00", "2026-11-29T10:05:00+00:00",
    (0.31, 4.2), MACHINE, "Two rounds.",
)  # fmt: skip
REPORT = Report(
    "links",
    RUN,
    (
        Figure("boot", "p2pcloop", "s", (5.1, 5.3), "1507 KB/s"),
        Figure("boot", "p2pcloop", "s", (9.0, 9.2), "613 KB/s"),
        Figure("boot", "btfs", "s", (60, 60), "613 KB/s", (0, 1)),
    ),
    (
        Bar("time / limit", "s", Quantity(5.2), Quantity(4), 1.2),
        Bar("time / btfs", "s", Quantity(5.2), Quantity(60), 1.0, doubts=("others ran",)),
    ),
)


def test_the_page_is_what_the_reports_make() -> None:
    assert performance_page.PAGE.read_text() == performance_page.page(
        performance_page.current(performance_page.CURRENT)
    )


def test_every_measure_has_a_section_and_every_report_a_command() -> None:
    assert set(performance_page.SECTIONS) == set(MEASURES) | set(SUITES)
    for report in performance_page.current(performance_page.CURRENT):
        assert report.run.command.startswith(f"tools/bench {report.name}")
        assert (report.error, bool(report.figures or report.bars)) == (None, True)


def test_reports_name_no_path_of_a_machine() -> None:
    for path in performance_page.CURRENT.glob("*.json"):
        assert not re.search(r'[" ]/(?!s\b|GB)[a-z]', path.read_text()), path


def test_a_run_is_shown_with_its_command_its_date_its_load_and_its_figures() -> None:
    text = performance_page.page([REPORT])
    assert "\n    tools/bench links --rounds 2\n" in text
    assert "\n29 November 2026, load 0.3 to 4.2, guest kernel 7.2. Two rounds.\n" in text
    assert "| boot | 1507 KB/s | 613 KB/s |\n" in text
    assert "| p2pcloop | **5.2 s** | **9.1 s** |\n| btfs | | > 60 s |\n" in text
    assert "| time / limit | 5.2 s | 4 s | 1.30 | ≤ 1.2 | **missed** |\n" in text
    assert "| time / btfs | 5.2 s | 60 s | — | ≤ 1 | not judged |\n" in text


def test_a_run_on_another_machine_says_so() -> None:
    other = replace(RUN, machine=MACHINE | {"processor": "another", "processors": 8})
    text = performance_page.page([REPORT, REPORT, replace(REPORT, run=other)])
    assert "The machine: 2 processors, a processor, 24 GiB of memory." in text
    assert text.count("another machine: 8 processors, another") == 1


def test_a_new_report_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    performance_page.taken_over(REPORT, tmp_path)
    newer = replace(REPORT, run=replace(RUN, note="newer"))
    performance_page.taken_over(newer, tmp_path)
    assert performance_page.current(tmp_path) == [newer]
    for wrong in (replace(REPORT, error="no link"), replace(REPORT, name="compare")):
        with pytest.raises(performance_page.PageError):
            performance_page.taken_over(wrong, tmp_path)
    with pytest.raises(performance_page.PageError, match="no reports"):
        performance_page.page([])
