"""Lines for a terminal that may stall or go away."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from p2pcloopd.netboot.telling import MAX_LINES, Teller, TellingHandler


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def all_lines(end: int) -> list[str]:
    with open(end, closefd=False) as stream:
        return stream.read().splitlines()


def test_lines_are_written_in_order_and_an_equal_one_once(pipe: tuple[int, int]) -> None:
    teller = Teller(pipe[1])
    for line in ("one", "two", "two", "two", "one", "three\x1b[2J"):
        teller.tell(line)
    teller.close()
    os.close(pipe[1])
    assert all_lines(pipe[0]) == [
        *("p2pcloop: one", "p2pcloop: two", "p2pcloop: one", "p2pcloop: three\\x1b[2J"),
    ]


def test_a_terminal_that_takes_nothing_delays_nothing(pipe: tuple[int, int]) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4096)
    teller = Teller(pipe[1])
    for number in range(4 * MAX_LINES):
        teller.tell(f"{number} " + "x" * 200)
    # It takes lines again: the first ones are there, and those are lost that had no room.
    os.set_blocking(pipe[0], True)
    first = os.read(pipe[0], 4096)
    assert first.startswith(b"p2pcloop: 0 ")
    os.close(pipe[0])
    teller.close()


def test_a_terminal_that_is_gone_ends_nothing(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    teller = Teller(pipe[1])
    log = logging.getLogger("test of telling")
    log.addHandler(TellingHandler(teller))
    log.warning("a client was dropped")
    teller.tell("a machine has its disk")
    teller.close()
    log.handlers.clear()


def test_the_log_is_told_as_lines_like_others(pipe: tuple[int, int]) -> None:
    teller = Teller(pipe[1])
    record = logging.LogRecord("p2pcloopd.x", logging.WARNING, "", 0, "%d came", (3,), None)
    handler = TellingHandler(teller)
    assert handler.formatter is not None  # else basicConfig gives it one with more words
    handler.handle(record)
    teller.close()
    os.close(pipe[1])
    assert all_lines(pipe[0]) == ["p2pcloop: 3 came"]
