"""What a terminal shows of work that takes long: how far it is, or what it waits for.

There is one line for this, which is drawn again and again. It appears once the work has taken
`DELAY_SECONDS`: one that flickers tells nothing. It shows a bar, where the work tells how far it
is; else what is waited for, and how long already. A wait within a bar stands beside that.
"""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pcloop.cells import cells, clipped
from p2pcloop.client.invocation import is_quiet, prints_json
from p2pcloop.client.terminal import draw_line, leave_line
from p2pcloop.units import format_duration, format_size
from p2pcloop.words import as_text, joined, tr, translated

DELAY_SECONDS = 1.0

_WINDOW = 10.0
"""Seconds over which the rate is measured: peers come and go."""

_REDRAW_SECONDS = 0.1
"""Between two states of a bar: a terminal over a slow line need not follow all."""

_SECOND = 1.0
"""Between two looks at work that tells nothing: how long nothing came, what is waited for."""

_LEAST_WIDTH, _WIDTH = 10, 36
"""Characters of a bar, at least and at most."""

_SECTOR = 512
"""Bytes of st_blocks (stat(2))."""


def shows_progress(*, quiet: bool = False) -> bool:
    """Whether progress is shown: on a terminal alone, and not with `--quiet` or `--json`.

    Args:
        quiet: the command wants none.
    """
    return not (quiet or is_quiet() or prints_json()) and sys.stderr.isatty()


class Pace:
    """The recent rate of something, and the time that the rest takes at that rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()

    def tell(self, done: int, total: int) -> str:
        """Note how much is done, and return the text beside the bar.

        Args:
            done: bytes; the same number may be given again while nothing arrives.
            total: bytes, or 0 if it is not known.
        """
        rate = self.rate(done)
        if rate is None:
            return ""
        if not rate:
            return tr("nothing for {clock:.0f} s", clock=self._clock() - self._marks[0][0])
        if done >= total:
            return f"{format_size(rate)}/s"
        left = format_duration(math.ceil((total - done) / rate))
        return tr("{rate}/s, {left} left", rate=format_size(rate), left=left)

    def rate(self, done: int) -> float | None:
        """Note how much is done; return the recent rate, or None within the first second."""
        now = self._clock()
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - _WINDOW:
            self._marks.popleft()
        begun, before = self._marks[0]
        return max(0, done - before) / (now - begun) if now - begun >= 1 else None


class _Bar:
    """A bar. Its methods may be called from any thread."""

    def __init__(self, what: str, clock: Callable[[], float]) -> None:
        self._what = what
        self._clock = clock
        self._pace = Pace(clock)
        self._lock = threading.Lock()
        self._due = clock() + DELAY_SECONDS
        self._is_drawn = False
        self._done = self._total = 0
        self._note = self._wait = ""

    def show(self, done: int, total: int = 0, note: str = "") -> None:
        """See `progress_bar`."""
        with self._lock:
            self._done, self._total, self._note = done, total or self._total, note or self._note
            self._wait = ""
            self._draw_if_due()

    def wait(self, text: str) -> None:
        """Show what is waited for, "" for nothing, in place of the rate."""
        with self._lock:
            self._wait = text
            self._draw_if_due()

    def look(self) -> None:
        """Draw what holds now, unless a bar within this one is drawn."""
        with self._lock:
            if _bars[-1:] == [self]:
                self._draw_if_due()

    def end(self, *, whole: bool) -> None:
        """Leave the last state on the terminal.

        Args:
            whole: all is done, whatever was told last.
        """
        with self._lock:
            self._wait = ""
            if whole and self._total:
                self._done = self._total
            if self._is_drawn or self._clock() >= self._due:
                self._draw()
                leave_line()

    def _draw_if_due(self) -> None:
        if self._clock() >= self._due:
            self._draw()

    def _draw(self) -> None:
        self._due = self._clock() + _REDRAW_SECONDS
        self._is_drawn = True
        told = self._wait or joined(
            ", ", filter(None, (self._pace.tell(self._done, self._total), self._note))
        )
        beside, what = translated(told), translated(self._what)
        columns = shutil.get_terminal_size().columns - 1
        if self._total:
            share = min(1.0, self._done / self._total)
            others = cells(f"{what}  []  100%  {beside}")
            width = max(_LEAST_WIDTH, min(_WIDTH, columns - others))
            far = f"[{'#' * int(share * width):-<{width}}]  {int(share * 100):3}%"
        else:
            far = format_size(self._done)
        draw_line(clipped(f"{what}  {far}  {beside}".rstrip(), columns))


_bars: list[_Bar] = []
"""Those that are shown; the innermost last."""


@contextmanager
def progress_bar(
    what: str, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[..., None]]:
    """Yield a function to call with `done` and, at least at the first call, `total`, in bytes.

    Its third argument is a few words to show behind the rate; without one those before stay.

    Without a total the bar only counts. If the block ends without an error, the bar ends at 100 %.
    The last state is drawn in any case, if the bar was.
    Nothing is shown if `quiet`, or where `shows_progress` says so.
    """
    if not shows_progress(quiet=quiet):
        yield lambda done, total=0, note="": None  # noqa: ARG005  nothing is shown
        return
    bar = _Bar(what, clock)
    _bars.append(bar)
    whole = False
    try:
        with _beside(bar.look, lambda: _SECOND):
            yield bar.show
        whole = True
    finally:
        _bars.remove(bar)
        bar.end(whole=whole)


@contextmanager
def growth_bar(what: str, path: Path, *, quiet: bool = False) -> Iterator[None]:
    """Show, while the block runs, how many bytes of a file are on the disk; it may not exist yet.

    Nothing is shown if `quiet`, or where `shows_progress` says so.
    """
    pause = _REDRAW_SECONDS if shows_progress(quiet=quiet) else None
    with progress_bar(what, quiet=quiet) as show:

        def look() -> None:
            with suppress(OSError):  # it is not there yet, or no more
                show(path.stat().st_blocks * _SECTOR)

        with _beside(look, lambda: pause):
            yield


_told: list[str] = []
"""What `waiting_for` tells now: waits within it are parts of that one. "" for `without_waits`."""


class Wait:
    """One wait, for the code that waits to draw.

    A loop waits `pause()` for its event, and calls `draw` each time that passes without.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin to wait; draw nothing yet.

        Args:
            what: is waited for: the rest of the sentence "waiting for".
            clock: in seconds.
        """
        self._what = what
        self._clock = clock
        self._is_shown = shows_progress() and not _told
        self._begun = clock()
        self._next = self._begun + DELAY_SECONDS
        self._is_drawn = False

    def pause(self) -> float | None:
        """Seconds until the next `draw`; None: never."""
        return max(0.0, self._next - self._clock()) if self._is_shown else None

    def put_off(self) -> None:
        """Something else was told just now: draw later."""
        self._next = self._clock() + DELAY_SECONDS

    def draw(self) -> None:
        """Tell what is waited for, and how long already."""
        now = self._clock()
        self._next = now + _SECOND
        self._is_drawn = True
        text = tr(
            "waiting for {what}, {now:.0f} s", what=as_text(self._what), now=now - self._begun
        )
        if _bars:
            _bars[-1].wait(text)
        else:
            draw_line(translated(text))

    def end(self) -> None:
        """Take away what was drawn."""
        if self._is_drawn and _bars:
            _bars[-1].wait("")
        elif self._is_drawn:
            draw_line("")


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Tell what is waited for while the block runs, from another thread: the block may be in a
    system call, or in another program. It must print nothing but by `notify` and `warn`.

    Args:
        what: see `Wait`.
    """
    wait = Wait(what)
    _told.append(what)
    try:
        with _beside(wait.draw, wait.pause):
            yield
    finally:
        _told.pop()
        wait.end()


@contextmanager
def without_waits() -> Iterator[None]:
    """Draw no wait that begins while the block runs, in any thread: what a guest prints, or a
    screen, stands where it would be drawn."""
    _told.append("")
    try:
        yield
    finally:
        _told.pop()


@contextmanager
def _beside(draw: Callable[[], None], pause: Callable[[], float | None]) -> Iterator[None]:
    """Call `draw` from another thread while the block runs, each time after `pause()`; None: not
    at all."""
    if pause() is None:
        yield
        return
    ended = threading.Event()

    def draw_until_end() -> None:
        while not ended.wait(pause()):
            draw()

    thread = threading.Thread(target=draw_until_end)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
