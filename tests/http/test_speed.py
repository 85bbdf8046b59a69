"""How fast answers come."""

from __future__ import annotations

import pytest

from p2pcloopd.http.speed import Speed


def test_what_is_too_little_tells_nothing() -> None:
    speed = Speed()
    for _ in range(100):
        speed.record(4000, 0.001)
    assert speed.rate is None
    speed.record(60_000, 0.1)
    assert speed.rate is None
    speed.record(60_000, 0.1)
    assert speed.rate == pytest.approx(600_000)


def test_a_link_that_changes_is_soon_known() -> None:
    speed = Speed()
    for _ in range(100):
        speed.record(20_000, 0.001)
    for _ in range(30):
        speed.record(20_000, 0.1)
    assert speed.rate is not None
    assert speed.rate < 300_000


def test_what_came_all_at_once_tells_nothing() -> None:
    speed = Speed()
    speed.record(1 << 20, 0.0)
    assert speed.rate is None
