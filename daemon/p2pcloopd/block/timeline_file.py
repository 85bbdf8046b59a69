"""Records the timeline of a boot in the guest's folder (docs/formats/timeline.md).

Lines are written when bytes come and when waits end: there is no timer. So a pause is one span.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from p2pcloop.formats.timeline import (
    MAX_SIZE,
    Span,
    Wait,
    encode_span,
    encode_start,
    encode_wait,
)
from p2pcloop.image.touches import MAX_SECONDS

SPAN_SECONDS = 0.1
"""The shortest span."""

_STAT = "/proc/stat"
_IDLE = (3, 4)  # idle, iowait (proc_stat(5))
_COUNTED = 8  # without guest time, which is in user time, too


class TimelineFile:
    """Appends to a timeline until the boot is over for sure.

    A line that cannot be written is left out: it only informs.
    """

    def __init__(
        self,
        path: Path | None,
        clock: Callable[[], float] = time.monotonic,
        processors: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        """Write nothing yet.

        Args:
            path: where it goes, or None for nowhere.
            processors: the time that all processors were busy, and all of their time, since some
                moment; in any unit.
        """
        self._path = path
        self._clock = clock
        self._processors = processors or processor_times
        self._fd = -1
        self._start = self._since = clock()
        self._came = self._size = 0
        self._busy, self._all = (0, 0) if path is None else self._processors()

    def add_wait(self, begin: float, length: int) -> None:
        """Note that a read waited until now.

        Args:
            begin: when it began, by the clock.
            length: bytes that it waited for.
        """
        if self._goes_on():
            wait = Wait(max(0.0, begin - self._start), self._clock() - begin, length)
            self._write(encode_wait(wait))
            self._end_span()

    def add_bytes(self, length: int) -> None:
        """Note that bytes came."""
        if self._goes_on():
            self._came += length
            self._end_span()

    def _goes_on(self) -> bool:
        if self._path is None:
            return False
        if self._clock() - self._start <= MAX_SECONDS and self._size < MAX_SIZE:
            return True
        self._path = None
        if self._fd >= 0:
            os.close(self._fd)
        return False

    def _end_span(self) -> None:
        now = self._clock()
        if now - self._since < SPAN_SECONDS:
            return
        busy, all_ = self._processors()
        share = (busy - self._busy) / (all_ - self._all) if all_ > self._all else 0.0
        begin = self._since - self._start
        self._write(encode_span(Span(begin, now - self._since, self._came, min(1.0, share))))
        self._since, self._came = now, 0
        self._busy, self._all = busy, all_

    def _write(self, line: bytes) -> None:
        assert self._path is not None, "it goes on"
        with suppress(OSError):
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
                elapsed = self._clock() - self._start
                line = encode_start(time.time() - elapsed) + line
            self._size += os.write(self._fd, line)


def processor_times() -> tuple[int, int]:
    """For how long all processors of this machine were busy since it started, and all of their
    time; (0, 0) where that cannot be told."""
    with suppress(OSError, ValueError):
        with open(_STAT, "rb") as file:
            _, *fields = file.readline().split()
        ticks = [int(field) for field in fields[:_COUNTED]]
        idle = sum(ticks[number] for number in _IDLE)
        return sum(ticks) - idle, sum(ticks)
    return 0, 0
