"""Figures: medians with bounds, text, bars, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figure import Bar, Figure, Quantity, Report, Run, Started, read_report, write_report

RUN = Run("tools/bench x", "2026-11-29T10:00:00+00:00", "2026-11-29T10:05:00+00:00", (0.1, 2), {})


@given(st.lists(st.tuples(st.floats(0, 1e3), st.booleans()), min_size=1, max_size=9))
def test_a_median_is_a_bound_unless_most_rounds_ended(made: list[tuple[float, bool]]) -> None:
    values = tuple(value for value, _ in made)
    cut = tuple(number for number, (_, bound) in enumerate(made) if bound)
    found = Figure("boot", "p2pcloop", "s", values, cut=cut).median
    assert found.bound == (len(made) - len(cut) < len(made) // 2 + 1)
    assert min(values) <= found.value <= max(values)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (10.567, "s", "10.57 s"),
        (0.0273, "s", "27.3 ms"),
        (15_140_000, "B", "15.14 MB"),
        (31_700, "B", "31.7 kB"),
        (512, "B", "512 B"),
        (14455, "/s", "14,455 /s"),
        (1.25, "", "1.25"),
        (0, "B", "0 B"),
    ],
)
def test_a_quantity_is_shown_in_a_unit_that_reads_well(value: float, unit: str, text: str) -> None:
    assert Quantity(value).with_unit(unit) == text
    assert Quantity(value, bound=True).with_unit(unit) == f"> {text}"


def test_a_ratio_keeps_the_bound_and_nothing_is_divided_by_nothing() -> None:
    assert Quantity(8, bound=True) / Quantity(4) == Quantity(2, bound=True)
    assert (Quantity(1) / Quantity(0)).value == float("inf")


def test_a_bar_shows_what_it_is_held_against() -> None:
    ratio = Bar("boot", "s", Quantity(9), Quantity(6), 1.4)
    assert (ratio.cells, ratio.reached) == (("9 s", "6 s", "1.50", "≤ 1.4"), False)
    size = Bar("memory", "B", Quantity(2e8), None, 1.5e8)
    assert (size.cells, size.reached) == (("200 MB", "", "", "≤ 150 MB"), False)
    doubted = Bar("boot", "s", Quantity(9), Quantity(6), 1.4, doubts=("others ran",))
    assert (doubted.cells[2], doubted.reached) == ("—", None)
    assert Bar("rate", "/s", Quantity(9), Quantity(6), 1.4, at_least=True).reached


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = Report(
        "links",
        RUN,
        (Figure("boot", "p2pcloop", "s", (1.0, 2.0), "1507 KB/s", (1,)),),
        (Bar("b", "s", Quantity(1.5, bound=True), Quantity(2), 1.0, doubts=("load",)),),
    )
    path = write_report(report, tmp_path / "new")
    assert path.name == "links-20261129-100500.json"
    assert read_report(path) == report
    assert json.loads(path.read_text())["bars"][0]["ratio"] == 0.75


def test_what_is_no_report_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("{", "[]", '{"name": "x"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"x\.json is no report"):
            read_report(path)


def test_a_run_has_the_load_of_its_start_and_end() -> None:
    run = Started.now("tools/bench x", {"processors": 2}).over()
    assert run.load is not None
    assert len(run.load) == 2
    assert run.began <= run.ended
