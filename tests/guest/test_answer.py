"""When a resumed guest has answered."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pcloopd.guest.answer import SILENCE_SECONDS, SLOWNESS, UNHEARD_SECONDS, Answer


async def answered_at(answer: Answer, first: float, every: float) -> float:
    """Have a guest print three times; return when it counts as having answered."""
    answered: list[float] = []

    async def note() -> None:
        await answer.wait()
        answered.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note)
        await trio.sleep(10)  # it is held
        answer.begin()
        await trio.sleep(first)
        for _ in range(3):
            answer.hear()
            await trio.sleep(every)
    return answered[0] - 10


async def test_a_guest_has_answered_once_it_is_silent_again(autojump_clock: MockClock) -> None:
    every = SILENCE_SECONDS / 2
    assert await answered_at(Answer(), 0, every) == pytest.approx(2 * every + SILENCE_SECONDS)
    assert autojump_clock.current_time() > 0


async def test_a_slow_machine_is_given_time(autojump_clock: MockClock) -> None:
    every = 2 * SILENCE_SECONDS
    found = await answered_at(Answer(), 1, every)
    assert found == pytest.approx(1 + 2 * every + SLOWNESS)
    assert autojump_clock.current_time() > 0


async def test_a_guest_that_prints_nothing_was_asked_nothing(autojump_clock: MockClock) -> None:
    answer = Answer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer.wait)
        await trio.sleep(10)  # it is held
        assert nursery.child_tasks
        answer.begin()
    assert autojump_clock.current_time() == pytest.approx(10 + UNHEARD_SECONDS)
