"""The bars of resumes over lines, and the words of the command."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from bench.links import migrating, state_crowd, state_desktop
from bench.links.boots import LinkRun
from bench.links.contenders import PROFILED
from bench.links.control import Control
from bench.links.link import Link
from bench.links.qemu_rivals import COPIED, PRECOPY
from bench.links.sample import Sample
from bench.links.state import HERE, RESUMED, WITHOUT_KERNEL, bars, parse
from bench.links.use_desktop import differences


def found(rate: float, seconds: float, received: int, *, booted: float, moved: float) -> LinkRun:
    """One round of each."""

    def samples(seconds: float) -> list[Sample]:
        return [Sample(seconds, False, received, 0)]

    every = {HERE: samples(0.5), RESUMED: samples(seconds), PROFILED: samples(booted)}
    every[WITHOUT_KERNEL] = samples(2 * seconds)
    if moved:
        every |= {PRECOPY.name: samples(moved), COPIED.name: samples(moved)}
    return LinkRun(Link(rate), Control(1.0, 0.001), every)


def test_each_line_has_its_bars() -> None:
    good = bars(found(1507e3, 1.9, 1_500_000, booted=3.5, moved=80))
    assert all(bar.reached for bar in good)
    assert [bar.limit for bar in good] == [2.0, 1.6e6, 0.55, None, None, 0.1, None]
    bad = bars(found(613e3, 4.1, 1_700_000, booted=8, moved=0))
    assert [bar.reached for bar in bad if bar.limit] == [False, False, False]
    fast = bars(found(8748e3, 1, 1, booted=2, moved=0))
    assert [bar.limit for bar in fast if bar.limit] == [0.9, 1.6e6, 0.4]


def test_what_qemu_does_is_not_ten_times_slower() -> None:
    judged = bars(found(1507e3, 1.9, 1_500_000, booted=3.5, moved=15))
    assert [bar.reached for bar in judged if PRECOPY.name in bar.title] == [False]


def test_three_lines_unless_others_are_named() -> None:
    assert [link.rate for link in parse([]).links] == [8748e3, 1507e3, 613e3]
    assert parse(["--links", "1507", "--ours"]).ours


def test_a_desktop_has_a_bar_and_an_image_of_its_own() -> None:
    def run(rate: float, seconds: float) -> LinkRun:
        samples = [Sample(seconds, False, 8_000_000, 0)]
        every = {state_desktop.RESUMED: samples, state_desktop.HERE: samples}
        return LinkRun(Link(rate), Control(1.0, 0.001), every)

    assert [bar.reached for bar in state_desktop.bars(run(1507e3, 5.9))] == [True, True]
    assert not state_desktop.bars(run(1507e3, 6.1))[0].reached
    assert state_desktop.bars(run(613e3, 60.0))[0].limit is None
    assert state_desktop.parse([]).image == ("--desktop", "vnc")
    with pytest.raises(SystemExit):
        state_desktop.parse(["--tiny"])


def test_the_clock_is_no_part_of_the_picture() -> None:
    before, after = Image.new("RGB", (1280, 800)), Image.new("RGB", (1280, 800))
    after.paste((9, 9, 9), (1230, 4, 1240, 20))
    assert differences(before, after) is None
    after.paste((9, 9, 9), (100, 70, 108, 85))
    assert differences(before, after) == (100, 70, 108, 85)
    assert differences(before, Image.new("RGB", (640, 480)))


def test_many_and_moves_have_lines_of_1507() -> None:
    assert state_crowd.parse([]).link.rate == 1507e3
    assert migrating.parse([]).link.rate == 1507e3


def test_a_pause_is_from_the_last_line_here_to_the_first_one_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_text("tick")
    watch = migrating._Watch.of([here, there])
    for at, path, text in (
        (1.0, here, "tick"), (2.0, here, "tick"), (3.0, here, "p2pcloop: is suspended"),
        (4.0, there, "p2pcloop: it runs"), (5.0, there, "tick"), (6.0, there, "tick"),
    ):  # fmt: skip
        now[0] = at
        with path.open("a") as file:
            file.write(text)
        watch.look()
    assert watch.seen[here] == (1.0, 2.0)
    assert watch.seen[there] == (5.0, 6.0)
    watch = migrating._Watch.of([here, there])
    here.write_text("tick")  # it comes back, and begins its log anew
    watch.look()
    assert watch.seen == {here: (6.0, 6.0)}


def test_ssh_is_played_by_a_script(tmp_path: Path) -> None:
    rig = cast("Any", SimpleNamespace(bench=SimpleNamespace(p2pcloop=Path("/bin/p2pcloop"))))
    host = cast("Any", SimpleNamespace(inside=["env"]))
    script = migrating._ssh(rig, tmp_path, {"one": (host, Path("/1")), "other": (host, Path("/2"))})
    for name, home in (("one", "/1"), ("other", "/2")):
        done = subprocess.run(
            [script, name, "echo $P2PCLOOP_HOME"], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{home}\n"
