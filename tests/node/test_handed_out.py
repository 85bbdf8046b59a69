"""What a node handed out lately."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from p2pcloopd.node.handed_out import KEPT_SECONDS, HandedOut

IMAGE, OTHER = b"i" * 20, b"o" * 20


async def test_who_asks_next_gets_the_next(autojump_clock: MockClock) -> None:  # noqa: ARG001
    handed = HandedOut()
    assert [handed.choose(IMAGE, [3, 1, 2]) for _ in range(4)] == [3, 1, 2, None]
    assert handed.choose(OTHER, [1]) == 1
    assert handed.choose(IMAGE, [1, 4]) == 4


async def test_what_was_lost_is_handed_out_again(autojump_clock: MockClock) -> None:  # noqa: ARG001
    handed = HandedOut()
    assert handed.choose(IMAGE, [1]) == 1
    await trio.sleep(KEPT_SECONDS / 2)
    assert handed.choose(IMAGE, [1, 2]) == 2
    await trio.sleep(KEPT_SECONDS / 2)
    assert handed.choose(IMAGE, [2, 1]) == 1
    assert handed.choose(IMAGE, [2, 1]) is None
