"""In which order several workers run tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def deal(
    tests: Sequence[T], workers: int, weight: Callable[[T], int], file: Callable[[T], object]
) -> list[T]:
    """Order tests for pytest-xdist's `worksteal`.

    xdist cuts the list into one part a worker, all of the same length. A worker whose part is done
    takes over half of what another has left, from its end. So each part has its heaviest tests
    first: no long test begins late. Tests of weight 1 compute, heavier ones mostly wait; each kind
    alone leaves a processor or a worker idle, so they are mixed. Tests that wait stay with those
    of their file, since they share fixtures.

    Args:
        weight: how much longer a test takes than one that computes.
        file: the file of a test.
    """
    waiting: dict[object, list[T]] = {}
    for test in sorted(tests, key=lambda test: -weight(test)):
        if weight(test) > 1:
            waiting.setdefault(file(test), []).append(test)
    parts: list[list[list[T]]] = [[] for _ in range(workers)]
    weights = [0] * workers
    for together in waiting.values():
        lightest = weights.index(min(weights))
        parts[lightest].append(together)
        weights[lightest] += sum(map(weight, together))
    computing = iter([test for test in tests if weight(test) == 1])
    dealt: list[T] = []
    for n, files in enumerate(parts):
        length = (len(tests) - len(dealt)) // (workers - n)
        rest = max(0, length - sum(map(len, files)))
        dealt += _mixed(files, list(islice(computing, rest)), weight)
    return [*dealt, *computing]


def _mixed(files: list[list[T]], computing: list[T], weight: Callable[[T], int]) -> Iterator[T]:
    """Put tests that compute between files of tests that wait, in proportion to their weight."""
    total = sum(weight(test) for file in files for test in file)
    done = given = 0
    for file in files:
        yield from file
        done += sum(map(weight, file))
        upto = len(computing) * done // total
        yield from computing[given:upto]
        given = upto
    yield from computing[given:]
