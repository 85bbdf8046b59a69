from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.image.touches import MAX_FOUND, MAX_SECONDS, Touches


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def test_blocks_are_noted_once_in_the_order_in_which_they_are_read() -> None:
    clock = Clock()
    touches = Touches(clock)
    touches.record(100, 4)
    clock.now = 6.0
    touches.record(98, 8)
    clock.now = 7.0
    touches.record(99, 3)
    assert touches.found == [(100, 4, 5.0), (98, 2, 6.0), (104, 2, 6.0)]


def test_reads_that_follow_each_other_are_one_touch() -> None:
    touches = Touches(Clock())
    for first in range(0, 64, 8):
        touches.record(first, 8)
    assert touches.found == [(0, 64, 5.0)]


@given(st.lists(st.tuples(st.integers(262_100, 262_200), st.integers(1, 64)), max_size=40))
def test_first_touches_are_those_of_a_set(reads: list[tuple[int, int]]) -> None:
    touches = Touches(Clock())
    seen: dict[int, None] = {}
    for first, count in reads:
        touches.record(first, count)
        seen.update(dict.fromkeys(range(first, first + count)))
    blocks = [start + at for start, count, _ in touches.found for at in range(count)]
    assert blocks == list(seen)


def test_noting_ends_with_the_time_of_a_boot() -> None:
    clock = Clock()
    touches = Touches(clock)
    touches.record(0, 1)
    clock.now += MAX_SECONDS + 1
    touches.record(9, 1)
    assert touches.found == [(0, 1, 5.0)]
    assert not touches.noting


def test_noting_ends_when_a_profile_is_full() -> None:
    touches = Touches(Clock())
    for number in range(MAX_FOUND + 1):
        touches.record(2 * number, 1)
    assert len(touches.found) == MAX_FOUND
    assert not touches.noting
