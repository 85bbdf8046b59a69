"""The facts of `tools/bench plan` are those of a crowd that has something to decide."""

from __future__ import annotations

import pytest

from bench.plan import PIECES, VIEWS
from p2pcloopd.engine.fetch.policy import plan
from p2pcloopd.engine.fetch.tuning import TUNING


@pytest.mark.parametrize("name", VIEWS)
def test_a_decision_asks_for_much(name: str) -> None:
    made = plan(VIEWS[name], TUNING)
    assert len(VIEWS[name].wants) == PIECES == 256
    assert len(made.peers) > PIECES // 4
    dispatched = [piece for piece in made.dispatch if VIEWS[name].copies[piece] == 0]
    assert (dispatched == made.dispatch != []) is VIEWS[name].dispatch_ready
