"""What a node dispatched lately."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from p2pcloopd.node.dispatch_log import KEPT_SECONDS, DispatchLog

IMAGE, OTHER = b"i" * 20, b"o" * 20


def give(log: DispatchLog, info_hash: bytes, pieces: Sequence[int]) -> int | None:
    with log.choose(info_hash, pieces) as piece:
        return piece


async def test_who_asks_next_gets_the_next(autojump_clock: MockClock) -> None:
    log = DispatchLog()
    assert [give(log, IMAGE, [3, 1, 2]) for _ in range(4)] == [3, 1, 2, None]
    assert give(log, OTHER, [1]) == 1
    assert give(log, IMAGE, [1, 4]) == 4


async def test_what_was_lost_is_dispatched_again(autojump_clock: MockClock) -> None:
    log = DispatchLog()
    assert give(log, IMAGE, [1]) == 1
    await trio.sleep(KEPT_SECONDS / 2)
    assert give(log, IMAGE, [1, 2]) == 2
    await trio.sleep(KEPT_SECONDS / 2)
    assert give(log, IMAGE, [2, 1]) == 1
    assert give(log, IMAGE, [2, 1]) is None


async def test_what_could_not_be_read_is_withheld_from_no_client() -> None:
    log = DispatchLog()
    with pytest.raises(OSError, match="the disk"), log.choose(IMAGE, [1, 2]) as piece:
        assert piece == 1
        assert give(log, IMAGE, [1, 2]) == 2  # two who ask at once get different ones
        raise OSError("the disk refused")
    assert give(log, IMAGE, [1]) == 1
