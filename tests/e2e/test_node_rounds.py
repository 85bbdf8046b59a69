"""A short form of `python -m bench.suspend_rounds --nodes`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.boot_disks import stock_kernel
from tests.support.node_rounds import NodeEvent, begin, run_node_rounds
from tests.support.programs import Nodes

pytestmark = pytest.mark.e2e

EVENTS: tuple[NodeEvent, ...] = ("kill who fetches", "kill p2pcloopd at suspend", "kill the guest")


def test_a_guest_loses_nothing_when_p2pcloopd_is_killed(image: Path, nodes: Nodes) -> None:
    stock_kernel()
    both = nodes.make(), nodes.make()
    rounds = run_node_rounds(both, begin(both[0], image), EVENTS, lambda: 0.3)
    assert tuple(rounds) == EVENTS
