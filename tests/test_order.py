"""The order of tests for several workers (tests/support/order.py)."""

from __future__ import annotations

import random
from itertools import groupby
from typing import NamedTuple

from tests.support.order import deal


class Example(NamedTuple):
    """A test, as far as the order knows it."""

    file: str
    number: int
    weight: int


def dealt(tests: list[Example], workers: int) -> list[list[Example]]:
    """The part of each worker, cut as pytest-xdist does."""
    order = deal(tests, workers, lambda test: test.weight, lambda test: test.file)
    assert sorted(order) == sorted(tests)
    parts = []
    for left in range(workers, 0, -1):
        length = len(order) // left
        parts.append(order[:length])
        del order[:length]
    return parts


def some_tests(seed: int) -> list[Example]:
    noise = random.Random(seed)
    return [
        Example(f"test_{name}.py", number, weight)
        for name, weight in enumerate([20] * 12 + [3] * 20 + [1] * 40)
        for number in range(noise.randrange(1, 12))
    ]


def test_every_worker_begins_with_the_longest_and_ends_with_short_ones() -> None:
    for seed in range(20):
        for part in dealt(some_tests(seed), 4):
            waiting = [test.weight for test in part if test.weight > 1]
            assert part[0].weight == 20
            assert waiting == sorted(waiting, reverse=True)
            assert part[-1].weight < 20


def test_workers_get_about_the_same() -> None:
    for seed in range(20):
        tests = some_tests(seed)
        loads = [sum(test.weight for test in part) for part in dealt(tests, 4)]
        assert max(loads) - min(loads) <= 20 * 11, "more than one file"


def test_tests_that_wait_stay_together_and_others_lie_between() -> None:
    for part in dealt(some_tests(1), 4):
        runs = [
            file for file, _ in groupby(part, lambda test: test.file if test.weight > 1 else "")
        ]
        files = [file for file in runs if file]
        assert len(files) == len(set(files))
        assert "" in runs[:-1]


def test_few_tests_are_dealt_too() -> None:
    one = Example("test_a.py", 0, 20)
    assert dealt([one], 4)[-1] == [one]
    assert dealt([], 4) == [[]] * 4
    computing = [Example("test_b.py", number, 1) for number in range(5)]
    assert dealt(computing, 2) == [computing[:2], computing[2:]]
    waiting = [Example("test_c.py", number, 3) for number in range(6)]
    assert dealt([*computing, *waiting], 2) == [waiting[:5], [waiting[5], *computing]]
