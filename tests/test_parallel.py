"""Ordered work on threads: in order, bounded, and over when the caller stops."""

import os
import signal
import threading
from collections.abc import Generator, Iterator

import pytest

from p2pcloop.parallel import ordered_map

WORKERS = 3


def test_results_come_in_order_whatever_ends_first() -> None:
    """Each of the first three waits for the next one: they end in reverse."""
    done = [threading.Event() for _ in range(WORKERS)]
    done[-1].set()

    def work(item: int) -> int:
        if item < WORKERS - 1:
            assert done[item + 1].wait(10)
        if item < WORKERS:
            done[item].set()
        return item * item

    assert list(ordered_map(work, range(50), workers=WORKERS)) == [n * n for n in range(50)]


@pytest.mark.parametrize("count", [0, 1, 8, 9, 10, 100])
@pytest.mark.parametrize("workers", [1, WORKERS, None])
def test_every_item_once(count: int, workers: int | None) -> None:
    assert list(ordered_map(str, range(count), workers=workers)) == [str(n) for n in range(count)]


def test_items_are_taken_a_bounded_number_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for n in range(1000):
            taken = n + 1
            yield n

    for number, _ in enumerate(ordered_map(str, items(), workers=WORKERS), 1):
        assert taken <= number + 3 * WORKERS
    assert taken == 1000


def test_an_error_ends_it_and_what_was_not_begun_is_dropped() -> None:
    begun = []
    gate = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            raise ValueError("zero")
        assert gate.wait(10)
        return item

    def items() -> Iterator[int]:
        yield from range(5)
        gate.set()
        yield from range(5, 1000)

    with pytest.raises(ValueError, match="zero"):
        list(ordered_map(work, items(), workers=2))
    assert len(begun) <= 6


def test_a_caller_that_stops_early_ends_the_threads() -> None:
    before = threading.active_count()
    results = ordered_map(str, range(1000), workers=WORKERS)
    assert next(iter(results)) == "0"
    assert threading.active_count() > before
    assert isinstance(results, Generator)
    results.close()
    assert threading.active_count() == before


def test_an_interrupt_ends_it_and_leaves_no_thread() -> None:
    """Ctrl-C reaches the thread that waits for a result."""
    before = threading.active_count()
    main = threading.main_thread().ident
    assert main is not None
    begun = []
    taken, gate = threading.Event(), threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        if not gate.is_set():
            gate.set()
            raise KeyboardInterrupt

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            assert taken.wait(10)
            # One that comes just before the main thread begins to wait does not wake it.
            while not gate.is_set():
                signal.pthread_kill(main, signal.SIGINT)
                os.sched_yield()
        assert gate.wait(10)

    def items() -> Iterator[int]:
        yield from range(5)
        taken.set()  # both threads run: from now on results are waited for
        yield from range(5, 1000)

    old = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(ordered_map(work, items(), workers=2))
    finally:
        signal.signal(signal.SIGINT, old)
    assert len(begun) <= 6
    assert threading.active_count() == before


def test_an_error_of_the_items_is_passed_on() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("items")

    with pytest.raises(KeyError, match="items"):
        list(ordered_map(str, items(), workers=WORKERS))
