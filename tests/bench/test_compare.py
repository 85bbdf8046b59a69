"""`tools/bench compare`: rounds of two programs in turn, joined and held against each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import compare
from bench.__main__ import main
from bench.figure import Figure, Report, Run, write_report
from bench.harness import BenchError
from bench.links.suite import INTERRUPTED, command_of

RUN = Run("tools/bench missing", "2026-11-29T10:00:00", "2026-11-29T10:05:00", None, {})


def report(seconds: float, received: float = 10.0, *, cut: bool = False) -> Report:
    figures = (
        Figure("boot", "p2pcloop", "s", (seconds,), "1507 KB/s", (0,) if cut else ()),
        Figure("boot", "local", "s", (4.0,), "1507 KB/s"),
        Figure("received", "p2pcloop", "B", (received,), "1507 KB/s"),
        Figure("rate", "p2pcloop", "/s", (seconds,)),
        Figure("processors busy", "p2pcloop", "", (0.5,)),
    )
    return Report("links", RUN, figures, ())


def test_rounds_are_joined_and_remember_which_were_cut() -> None:
    found = compare.joined([report(5), report(60, cut=True), report(6)])
    boot = found["boot", "p2pcloop", "1507 KB/s"]
    assert (boot.values, boot.cut) == ((5, 60, 6), (1,))


def test_more_seconds_and_more_bytes_are_worse_and_a_higher_rate_is_better() -> None:
    before, after = compare.joined([report(5)]), compare.joined([report(6, received=9)])
    held = {bar.title: bar for bar in compare.compared("links --rounds 1", before, after, 1.03)}
    assert {title: (bar.value.value, bar.reached) for title, bar in held.items()} == {
        "links, boot, p2pcloop, 1507 KB/s": (1.2, False),
        "links, boot, local, 1507 KB/s": (1.0, True),  # shown, not judged
        "links, received, p2pcloop, 1507 KB/s": (0.9, True),
        "links, rate, p2pcloop": (1.2, True),
    }


def test_programs_take_turns_and_share_a_recorded_boot_and_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[str, ...]] = []

    def one_run(argv: Sequence[str | Path], _folder: Path, _limit: float) -> Report:
        runs.append(tuple(map(str, argv)))
        return report(5)

    monkeypatch.setattr(compare, "_one_run", one_run)
    monkeypatch.setattr(compare, "_compile", lambda _checkout: None)
    other, out = str(tmp_path / "other"), str(tmp_path / "out")
    assert compare.main([other, "links --tiny", "missing", "--rounds", "2", "--out", out]) == 0
    program = f"{other}/.venv/bin/p2pcloop"
    assert [(run[3], run[-1] == program) for run in runs] == [
        *[("links", True), ("links", False), ("missing", True), ("missing", False)],
        *[("links", False), ("links", True), ("missing", False), ("missing", True)],
    ]
    recorded = {run[run.index("--recorded") + 1] for run in runs if "--recorded" in run}
    assert [Path(path).name for path in recorded] == ["boot-tiny.json"]
    profiles = {run[run.index("--profile") + 1] for run in runs if "links" in run}
    assert [Path(path).name for path in profiles] == ["boot-tiny.profile"]
    assert not any("--profile" in run for run in runs if "missing" in run)
    assert all("p2pcloop-profile" in run[run.index("--contenders") + 1] for run in runs[:2])


def test_an_interrupted_comparison_ends_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_run(*_: object) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "_one_run", one_run)
    monkeypatch.setattr(compare, "_compile", lambda _checkout: None)
    assert main(["compare", str(tmp_path), "missing", "--out", str(tmp_path)]) == INTERRUPTED


def test_a_run_that_measures_nothing_is_told_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"links-1-before measured nothing: no room"):
        compare._one_run(["sh", "-c", "echo no room"], tmp_path / "links-1-before", 10)
    with pytest.raises(BenchError, match="took more than 0 s"):
        compare._one_run(["sh", "-c", "exec sleep 60"], tmp_path / "slow", 0)


def test_a_run_is_found_by_its_report(tmp_path: Path) -> None:
    written = write_report(report(7), tmp_path)
    copy = f"import shutil, sys; shutil.copy({str(written)!r}, sys.argv[2])"
    found = compare._one_run([sys.executable, "-c", copy], tmp_path / "run", 10)
    assert found == report(7)


def test_the_command_of_a_report_names_no_path() -> None:
    words = ["--rounds", "3", "--out", "/x", "--p2pcloop=/y", "--recorded", "/z", "--tiny"]
    assert command_of("crowd", words) == "tools/bench crowd --rounds 3 --tiny"


def test_measures_that_run_code_of_this_checkout_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "compare", "/nowhere", "stack"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "stack" in done.stderr
