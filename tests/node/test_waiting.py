"""What clients are told of operations that take long."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pcloopd.control_server import Call
from p2pcloopd.engine.fetch.range_requests import NoServers
from p2pcloopd.engine.fetch.swarm import Traffic
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.node.waiting import Reports

AFTER = 3


class Servers(NoServers):
    """One that is asked, and sends a byte each second, or none."""

    def __init__(self, *, drips: bool) -> None:
        self._drips = drips

    def asking(self) -> bool:
        return True

    def heard(self) -> int:
        return int(trio.current_time()) if self._drips else 5

    def faults(self) -> list[str]:
        return ["http://a/ (asked, and not all has come)"]


@pytest.mark.parametrize("drips", [False, True])
async def test_a_server_that_sends_slowly_is_told_apart(
    drips: bool, autojump_clock: MockClock
) -> None:
    told: list[dict[str, Any]] = []

    async def emit(event: str, **fields: Any) -> None:
        assert event == "waiting"
        told.append(fields)

    peers = SimpleNamespace(stalled=trio.current_time, tried=lambda: ())
    torrent = SimpleNamespace(peers=peers, servers=Servers(drips=drips), traffic=Traffic)
    reports = Reports(AFTER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reports.run)
        await wait_all_tasks_blocked()
        await reports.report_if_waiting(
            cast(Torrent, torrent),
            cast(Call, SimpleNamespace(emit=emit)),
            partial(trio.sleep, 5 * AFTER),
        )
        nursery.cancel_scope.cancel()
    assert [fields["seconds"] for fields in told] == [AFTER, 4 * AFTER]
    assert [fields["arriving"] for fields in told] == [drips] * 2
    assert autojump_clock.current_time() >= 5 * AFTER
