"""The bars of bare machines: what is left out, and what is compared."""

from __future__ import annotations

import pytest

from bench.links.netboot import Crowd, Started, bars, figures, parse
from bench.links.usage import Usage

QUIET = Usage(own=1.0, others=0.0, busy=0.1)
ALONE = {
    "p2pcloop netboot": [Started(30.0, 62.0), Started(31.0, 60.0), Started(29.0, 61.0)],
    "a local disk": [Started(11.0, 40.0), Started(10.0, 41.0), Started(9.0, 39.0)],
}
CROWDS = {1: [Crowd(10.0, 4_000_000, QUIET)], 8: [Crowd(12.0, 5_000_000, QUIET)]}


def test_what_firmware_and_ipxe_take_longer_is_left_out() -> None:
    found = {bar.title: bar for bar in bars(ALONE, CROWDS, {})}
    alone = found["login over the network, without iPXE / from a disk"]
    assert (alone.ours.value, alone.base and alone.base.value) == (41.0, 40.0)
    assert found["the last of 8 / one alone"].reached
    sent = found["the seeder sends to 8 / to one"]
    assert sent.base is not None
    assert sent.ours.value / sent.base.value == pytest.approx(1.25)
    assert len(found) == 3


def test_the_time_of_real_machines_at_once_is_not_judged() -> None:
    real = {1: Crowd(60.0, 4_000_000, QUIET), 8: Crowd(500.0, 7_000_000, QUIET)}
    found = {bar.title: bar for bar in bars(ALONE, CROWDS, real)}
    assert found["the last of 8 real machines"].limit is None
    assert not found["the same, 8 real machines"].reached


def test_each_figure_has_a_key_of_its_own() -> None:
    real = {1: Crowd(60.0, 4_000_000, QUIET), 8: Crowd(500.0, 7_000_000, None)}
    keys = [figure.key for figure in figures(ALONE, CROWDS, real)]
    assert len(set(keys)) == len(keys)


def test_an_image_without_a_login_at_the_serial_line_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A machine of it would be waited for in vain."""
    with pytest.raises(SystemExit):
        parse(["--tiny"])
    assert "the tiny image has its login at the screen" in capsys.readouterr().err
    assert parse([]).machines == 8
