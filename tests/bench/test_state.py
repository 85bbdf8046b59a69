"""The bars of resumes over lines, and the words of the command."""

from __future__ import annotations

from bench.links.boots import LinkRun
from bench.links.contenders import PROFILED
from bench.links.control import Control
from bench.links.link import Link
from bench.links.qemu_rivals import COPIED, PRECOPY
from bench.links.sample import Sample
from bench.links.state import HERE, RESUMED, bars, parse


def found(rate: float, seconds: float, received: int, *, booted: float, moved: float) -> LinkRun:
    """One round of each."""

    def samples(seconds: float) -> list[Sample]:
        return [Sample(seconds, False, received, 0)]

    every = {HERE: samples(0.5), RESUMED: samples(seconds), PROFILED: samples(booted)}
    if moved:
        every |= {PRECOPY.name: samples(moved), COPIED.name: samples(moved)}
    return LinkRun(Link(rate), Control(1.0, 0.001), every)


def test_each_line_has_its_bars() -> None:
    good = bars(found(1507e3, 1.9, 1_500_000, booted=3.5, moved=80))
    assert [bar.reached for bar in good] == [True, True, True, True, True]
    bad = bars(found(613e3, 4.1, 1_700_000, booted=8, moved=0))
    assert [bar.reached for bar in bad] == [False, False, False]
    assert [bar.limit for bar in bars(found(8748e3, 1, 1, booted=2, moved=0))] == [0.9, 1.6e6, 0.4]


def test_what_qemu_does_is_not_ten_times_slower() -> None:
    judged = bars(found(1507e3, 1.9, 1_500_000, booted=3.5, moved=15))
    assert [bar.reached for bar in judged if PRECOPY.name in bar.title] == [False]


def test_three_lines_unless_others_are_named() -> None:
    assert [link.rate for link in parse([]).links] == [8748e3, 1507e3, 613e3]
    assert parse(["--links", "1507", "--ours"]).ours
