"""When a resumed guest may go on."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from p2pcloopd.block.arrivals import LEAD_SECONDS, MEASURE_SECONDS, STALL_SECONDS, Arrivals


async def time_until_enough(
    arrivals: Arrivals, sizes: list[int], every: float, clock: trio.testing.MockClock
) -> float:
    """Bytes come in ranges of these sizes; return when that was enough."""
    times: list[float] = []

    async def wait() -> None:
        await arrivals.enough()
        times.append(trio.current_time())

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        for size in sizes:
            clock.jump(every)
            arrivals.add(size)
            await trio.testing.wait_all_tasks_blocked()
            if times:
                break
    return times[0] - start


@pytest.fixture
def clock(mock_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    return mock_clock


@pytest.mark.parametrize(
    ("rate", "held_until"),
    [
        (8_748_000, 0.0),  # the rest comes within the lead once anything is known of the rate
        (1_507_000, 1_000_000 / 1_507_000 - LEAD_SECONDS),
        (613_000, 1_000_000 / 613_000 - LEAD_SECONDS),
    ],
)
async def test_a_guest_is_held_the_longer_the_slower_the_line_is(
    clock: trio.testing.MockClock, rate: int, held_until: float
) -> None:
    arrivals = Arrivals()
    arrivals.expect(1_000_000)
    size = 10_000
    took = await time_until_enough(arrivals, [size] * 100, size / rate, clock)
    least = max(held_until, min(MEASURE_SECONDS, 1_000_000 / rate))
    assert least <= took <= least + 3 * size / rate


async def test_nothing_is_missing(clock: trio.testing.MockClock) -> None:
    arrivals = Arrivals()
    arrivals.expect(0)
    await arrivals.enough()
    assert trio.current_time() == clock.current_time() == 0


async def test_one_range_is_all(clock: trio.testing.MockClock) -> None:
    arrivals = Arrivals()
    arrivals.expect(1000)
    assert await time_until_enough(arrivals, [1000], 0.02, clock) == pytest.approx(0.02)


async def test_what_comes_later_is_waited_for(clock: trio.testing.MockClock) -> None:
    arrivals = Arrivals()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(arrivals.all)
        arrivals.expect(0)
        arrivals.end_first()
        arrivals.add_more(1)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        arrivals.end()
    await arrivals.all()
    assert clock.current_time() == 0


async def test_a_guest_is_not_held_for_what_does_not_come(
    autojump_clock: trio.testing.MockClock,
) -> None:
    arrivals = Arrivals()
    await arrivals.enough()
    assert autojump_clock.current_time() == pytest.approx(STALL_SECONDS)


async def test_it_is_not_held_after_an_error(clock: trio.testing.MockClock) -> None:
    arrivals = Arrivals()
    arrivals.expect(1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(arrivals.enough)
        nursery.start_soon(arrivals.news)
        await trio.testing.wait_all_tasks_blocked()
        arrivals.end()
    assert arrivals.ended
    assert clock.current_time() == 0
