"""What `tools/bench links` and its kin compute: links, medians, refusals, bars, W, plots."""

from __future__ import annotations

import argparse
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bench.figure import Bar, Quantity
from bench.links import crowd as crowds
from bench.links import download, missing, suite
from bench.links.boot_command import parse
from bench.links.boot_figures import LinkFigures, bars, link_figures, ratio, table
from bench.links.boots import LinkRun
from bench.links.contenders import CONTENDERS, PLAIN, PROFILED, WARM
from bench.links.control import Control
from bench.links.crowd import Crowd, Replayed
from bench.links.least import Least, first_touches, packed_bytes
from bench.links.link import Link
from bench.links.plots import (
    bytes_against_link,
    last_against_number,
    misses_over_time,
    time_against_link,
)
from bench.links.sample import Sample
from bench.links.usage import Usage, busy_seconds, own_seconds

LEAST = Least(packed=6_000_000, touched=9_000_000)
QUIET = Usage(own=4.0, others=0.02, busy=0.5)
FINE = Control(share=0.99, round_trip=0.0001)


def samples(*seconds: float, limit: float = 120, usage: Usage | None = QUIET) -> list[Sample]:
    return [
        Sample(min(s, limit), s > limit, received=9_900_000, sent=100_000, usage=usage)
        for s in seconds
    ]


def found(control: Control = FINE, link: str = "1507", **of: list[Sample]) -> LinkFigures:
    named = {name.replace("_", "-"): taken for name, taken in of.items()}
    return link_figures(LinkRun(Link.parse(link), control, named), LEAST)


def by_title(made: Sequence[Bar]) -> dict[str, Bar]:
    return {re.sub(r", [0-9]+ KB/s.*", "", bar.title): bar for bar in made}


@pytest.mark.parametrize(
    ("text", "rate", "delay"),
    [("613", 613_000, 0), ("25Mbit", 3_125_000, 0), ("25mbit+20ms", 3_125_000, 0.02)],
)
def test_a_link_is_read(text: str, rate: float, delay: float) -> None:
    link = Link.parse(text)
    assert (link.rate, link.delay) == (rate, delay)
    # What passes at once is nothing beside a boot, and at least what TCP sends in one go.
    assert 4 * 1514 <= link.burst < rate / 100 + 6057
    assert link.queue > link.delay


@pytest.mark.parametrize(
    "text", ["", "fast", "-5", "9", "2000000", "613+2000ms", "613ms", "613+20"]
)
def test_what_is_no_link_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="link"):
        Link.parse(text)


def test_processor_time_is_read_from_the_kernel() -> None:
    stat = "cpu  100 20 30 1000 500 6 7 8 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert busy_seconds(stat) == pytest.approx(1.71)  # neither idle nor waiting for a disk
    assert own_seconds("usage_usec 2500000\nuser_usec 1\n") == 2.5


def test_ratios_with_bounds_say_on_which_side_they_are() -> None:
    ours, theirs = Quantity(20), Quantity(120, bound=True)
    assert ratio(ours, Quantity(40)) == "0.50"
    assert ratio(ours, theirs) == "< 0.17"
    assert ratio(theirs, ours) == "> 6.00"
    assert ratio(theirs, theirs) == "unknown"
    assert theirs.text() == "> 120.0"


def test_the_limit_is_the_guest_or_the_link_whichever_is_slower() -> None:
    assert found(link="8748", local=samples(4, 5, 4.5)).limit == 4.5
    assert found(link="613", local=samples(4)).limit == pytest.approx(6_000_000 / 613_000)


def test_bars_are_held_against_the_limit_the_bytes_and_the_others() -> None:
    held = by_title(
        bars(
            found(
                local=samples(4),
                p2pcloop=samples(8, 9, 10),
                p2pcloop_profile=samples(4.5),
                nbdkit_file=samples(20),
                qemu_cloop=samples(8.5),
                btfs=samples(500),
                download=samples(7),
            )
        )
    )
    assert {title: bar.reached for title, bar in held.items()} == {
        "p2pcloop: time / limit": True,
        "p2pcloop: bytes received / the compressed chunks touched": True,
        "p2pcloop: time / nbdkit-file": True,
        "p2pcloop: time / qemu-cloop": False,
        "p2pcloop: time / btfs": True,
        "p2pcloop-profile: time / limit": True,
        "p2pcloop-profile: bytes received / W": False,
    }
    assert held["p2pcloop: time / limit"].value.value == pytest.approx(9 / 4)
    assert held["p2pcloop: time / btfs"].value == Quantity(9 / 120)


def test_a_boot_of_ours_that_did_not_end_reaches_nothing() -> None:
    held = by_title(bars(found(local=samples(100), p2pcloop=samples(130), btfs=samples(600))))
    assert held["p2pcloop: time / limit"].value == Quantity(1.2, bound=True)
    assert not any(bar.reached for bar in held.values())


def test_a_link_with_a_round_trip_is_held_against_a_warm_boot() -> None:
    control = Control(0.99, 0.0203)
    of = {PLAIN: samples(10), PROFILED: samples(5.5), WARM: samples(5)}
    run = LinkRun(Link.parse("25Mbit+20ms"), control, {"local": samples(4), **of})
    held = by_title(bars(link_figures(run, LEAST)))
    assert held[f"{PROFILED}: time / a warm boot"].value == Quantity(1.1)
    [gap] = [bar for title, bar in held.items() if "gap" in title]
    assert (gap.value, gap.reached) == (Quantity(0.1), True)


@pytest.mark.parametrize(
    ("control", "local", "ours", "doubt"),
    [
        (Control(0.94, 0.0), samples(4), samples(8), "a plain transfer had 94% of the link's rate"),
        (Control(1.2, 0.0), samples(4), samples(8), "a plain transfer had 120%"),
        (Control(0.99, 0.2), samples(4), samples(8), "a round trip took 200.0 ms"),
        (FINE, samples(4, 4, 5.3), samples(8), "the local boot took 4.0 to 5.3 s"),
        (FINE, samples(4, usage=Usage(4, 0.3, 0.9)), samples(8), "others had 30%.*local booted"),
        (FINE, samples(4), samples(8, usage=Usage(4, 0.2, 0.9)), "others had 20%.*p2pcloop booted"),
    ],
)
def test_no_ratio_is_told_where_the_machine_was_in_the_way(
    control: Control, local: list[Sample], ours: list[Sample], doubt: str
) -> None:
    figures_of = found(control, local=local, p2pcloop=ours, btfs=samples(80))
    held = by_title(bars(figures_of))
    for title in ("p2pcloop: time / limit", "p2pcloop: time / btfs"):
        assert held[title].reached is None
        assert any(re.match(doubt, text) for text in held[title].doubts)
    columns = {column.header: list(column.cells) for column in table(figures_of).columns}
    assert columns["/ limit"][1] == columns["p2pcloop / it"][2] == "—"
    assert columns["s"][1] == "8.0"  # what was measured is told all the same


def test_a_quiet_machine_and_one_that_tells_nothing_are_trusted() -> None:
    for usage in (QUIET, None):
        taken = found(local=samples(4, 5, usage=usage), p2pcloop=samples(8, usage=usage))
        assert taken.doubts(*taken.names) == ()


def test_load_during_one_contender_spares_the_others() -> None:
    busy = samples(20, usage=Usage(4, 0.5, 1))
    taken = found(local=samples(4), p2pcloop=samples(8), nbdkit_file=busy, btfs=samples(80))
    held = by_title(bars(taken))
    assert held["p2pcloop: time / nbdkit-file"].reached is None
    assert held["p2pcloop: time / btfs"].reached is True


def test_the_report_has_every_sample() -> None:
    of = {"local": samples(4, 5), PLAIN: samples(8, 200)}
    taken = link_figures(LinkRun(Link.parse("1507"), FINE, of), LEAST).all_figures()
    [boots] = [each for each in taken if each.key == ("boot", PLAIN, "1507 KB/s")]
    assert (boots.values, boots.cut, boots.median) == ((8, 120), (1,), Quantity(64, bound=True))
    assert {each.by for each in taken} >= {"local", "W", "chunks touched"}


def crowd(*seconds: float, sent: int, busy: float = 0.5) -> Crowd:
    return Crowd(tuple(Replayed(s, ()) for s in seconds), None, sent, Usage(1, 0.0, busy))


def test_crowds_are_held_against_one_alone() -> None:
    rounds = {
        1: [crowd(10, sent=6_000_000), crowd(11, sent=6_000_000), crowd(30, sent=6_000_000)],
        8: [crowd(12, 16, sent=9_300_000)],
        16: [crowd(12, 17, sent=9_000_000, busy=0.95)],
    }
    held = by_title(crowds.bars(rounds, packed=6_000_000))
    assert [bar.reached for bar in held.values()] == [True, False, None]
    assert [bar.value.value for bar in held.values()] == pytest.approx([16 / 11, 1.55, 17 / 16])
    assert held["the last of 16 / the last of 8"].doubts == (
        "the processors were 95% busy while 16 booted",
    )


def test_downloads_are_held_against_http() -> None:
    def took(seconds: float) -> list[download.Download]:
        return [download.Download(seconds, 1, QUIET)]

    each = {
        1: {"p2pcloop": took(10.5), "HTTP": took(10)},
        4: {"p2pcloop": took(41), "HTTP": took(40)},
    }
    assert [bar.reached for bar in download.bars(each)] == [True, False]


def test_misses_are_counted_in_round_trips() -> None:
    link = Link.parse("100Mbit+20ms")
    rounds = [missing.Misses(100, 0.028, 0.061, 0.09, 30_000, QUIET)]
    held = missing.bars(rounds, Control(0.99, 0.0202), link)
    assert [bar.reached for bar in held] == [True, False]
    slow = missing.bars(rounds, Control(0.5, 0.0202), link)
    busy = missing.bars([replace(rounds[0], usage=Usage(1, 0.5, 1))], Control(0.99, 0.0202), link)
    assert [bar.reached for bar in (*slow, *busy)] == [None] * 4


READS = st.lists(st.tuples(st.integers(0, 255), st.integers(1, 32)), max_size=30)


@given(READS)
def test_first_touches_name_each_block_once_in_order(blocks: list[tuple[int, int]]) -> None:
    reads = [(first * 4096, count * 4096) for first, count in blocks]
    runs = list(first_touches(reads))
    named = [block for first, count in runs for block in range(first, first + count)]
    touched = [block for first, count in blocks for block in range(first, first + count)]
    assert named == list(dict.fromkeys(touched))
    assert all(count > 0 for _, count in runs)


def test_reads_of_parts_of_blocks_touch_them() -> None:
    assert list(first_touches([(1024, 1024), (4095, 2), (0, 8192), (20480, 1)])) == [
        (0, 1),
        (1, 1),
        (5, 1),
    ]


def test_blocks_are_packed_in_groups_of_a_mebibyte(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"".join(b"%4095d\n" % (n // 3) for n in range(600)))
    data = image.read_bytes()
    order = data[200 * 4096 : 600 * 4096] + data[:4096]
    level = zstandard.ZstdCompressor(level=19)
    groups = [order[at : at + (1 << 20)] for at in range(0, len(order), 1 << 20)]
    assert len(groups) == 2
    expected = sum(len(level.compress(group)) for group in groups)
    assert packed_bytes(image, [(200, 400), (0, 1)]) == expected
    assert packed_bytes(image, []) == 0


def test_plots_are_svg_and_always_the_same(tmp_path: Path) -> None:
    links = [
        found(link=link, local=samples(4), p2pcloop=samples(8), btfs=samples(500))
        for link in ("8748", "1507")
    ]
    points = {"p2pcloop": [(1.0, 10.0), (8.0, 14.0)]}
    for name in ("a", "b"):
        time_against_link(links, tmp_path / f"{name}-time")
        bytes_against_link(links, tmp_path / f"{name}-bytes")
        last_against_number(points, tmp_path / f"{name}-last")
        misses_over_time(points, tmp_path / f"{name}-misses")
    for kind in ("time", "bytes", "last", "misses"):
        plot = (tmp_path / f"a-{kind}").read_bytes()
        assert ElementTree.fromstring(plot).tag.endswith("}svg")
        assert plot == (tmp_path / f"b-{kind}").read_bytes()


def test_the_command_lines_take_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    asked = parse(["--links", "613,25Mbit+20ms", "--contenders", "p2pcloop,btfs", "--rounds", "1"])
    assert [str(link) for link in asked.links] == ["613 KB/s", "3125 KB/s, 20 ms"]
    assert (asked.contenders, asked.rounds, asked.limit) == (["p2pcloop", "btfs"], 1, 120)
    assert parse([]).contenders == list(CONTENDERS)
    assert crowds.parse(["--nodes", "16,1,8"]).nodes == [1, 8, 16]
    for wrong in (
        ["--links", "1507,x"],
        ["--contenders", "nfs"],
        ["--rounds", "0"],
        ["--limit", "x"],
    ):
        with pytest.raises(SystemExit) as caught:
            parse(wrong)
        assert caught.value.code == 2
    assert "no such contender: nfs" in capsys.readouterr().err
    for nodes in ("0,8", "65", "many"):
        with pytest.raises(argparse.ArgumentTypeError):
            suite.counts(nodes)
