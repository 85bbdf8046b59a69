"""How long-running commands show how far they are: a bar on stderr, where that is a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from p2pcloop.units import format_size

_WINDOW = 10.0
"""Seconds of the past from which the rate is taken: peers come and go."""


class Pace:
    """How fast something goes lately, and how long the rest takes at that rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()

    def tell(self, done: int, total: int) -> str:
        """Take note of how much is done, and return what to show beside the bar.

        Args:
            done: bytes; they may be told again while nothing comes.
            total: bytes, or 0 where it is not known.
        """
        now = self._clock()
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - _WINDOW:
            self._marks.popleft()
        begun, before = self._marks[0]
        if now - begun < 1:
            return ""
        rate = max(0, done - before) / (now - begun)
        if not rate:
            return f"nothing for {now - begun:.0f} s"
        left = f", {_duration((total - done) / rate)} left" if done < total else ""
        return f"{format_size(rate)}/s{left}"


def _duration(seconds: float) -> str:
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


@contextmanager
def progress_bar(what: str, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Yield a function that is told `done` and, at the first call at least, `total` in bytes.

    Without a total it counts, and the bar shows only that something goes on. Where the block ends
    well all is done, whatever was told last.
    Nothing is shown when `quiet`, or where stderr is no terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total=0: None  # noqa: ARG005  nobody looks
        return
    pace = Pace()
    bar = click.progressbar(
        length=0, label=what, file=sys.stderr, show_eta=False, item_show_func=lambda text: text
    )
    known = 0
    with bar:

        def show(done: int, total: int = 0) -> None:
            nonlocal known
            known = total or known
            bar.length = known or None  # click shows no share of None
            told = pace.tell(done, known)
            bar.update(done - bar.pos, told if known else f"{format_size(done)}  {told}")

        yield show
        bar.update((bar.length or bar.pos) - bar.pos, "")
