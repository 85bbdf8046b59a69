"""The model of crowds whose nodes are machines of their own."""

from __future__ import annotations

import pytest

from bench.links.crowd_model import CrowdModel, Measured, model_table


def measured(count: int, *, others: float = 0.0) -> Measured:
    """A crowd whose costs lie on straight lines: 10 s of processor time a node in all."""
    return Measured(
        count,
        last=5.0 if count == 1 else 99.0,
        node=1.0 + 0.1 * (count - 1),
        seeder=0.5 * count,
        sent=5e6 + 1e5 * (count - 1),
        own=10.0 * count,
        others=others,
    )


def test_costs_lie_on_the_lines_through_what_was_measured() -> None:
    model = CrowdModel([measured(1), measured(8), measured(16)], 1e6)
    assert model.node(64) == pytest.approx(7.3)
    assert model.seeder(64) == pytest.approx(32.0)
    assert model.sent(64) == pytest.approx(11.3e6)


@pytest.mark.parametrize(
    ("count", "rate", "seconds"),
    [
        (1, 1e9, 5.0),
        (8, 1e9, 5.0 + 0.7),  # alone, and what a node has more to do
        (64, 1e9, 32.0),  # what the seeder has to do
        (64, 1e5, 113.0),  # what its line takes
    ],
)
def test_the_slowest_of_three_decides(count: int, rate: float, seconds: float) -> None:
    model = CrowdModel([measured(1), measured(16)], rate)
    assert model.last(count) == pytest.approx(seconds)


def test_on_one_machine_all_share_the_processors_that_others_leave() -> None:
    model = CrowdModel([measured(1), measured(8, others=0.5)], 1e9)
    assert model.here(1, 2) == pytest.approx(5.0)
    assert model.here(8, 2) == pytest.approx(80.0)


def test_the_table_tells_of_64_nodes_that_were_not_measured() -> None:
    shown = model_table(CrowdModel([measured(1), measured(16)], 1e9))
    assert list(shown.columns[0].cells) == ["1", "8", "16", "64"]
    assert list(shown.columns[1].cells) == ["5.0", "", "99.0", ""]
