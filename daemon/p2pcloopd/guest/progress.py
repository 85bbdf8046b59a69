"""What is told of a guest that boots, in one line: where it is, what came, what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable

from p2pcloop.client.invocation import is_quiet
from p2pcloop.client.progress import Pace
from p2pcloop.store.guests import GuestFolder
from p2pcloop.text import printable
from p2pcloop.units import format_size
from p2pcloop.words import joined, tr, translated
from p2pcloopd.guest.console.status_line import StatusLine
from p2pcloopd.guest.transcript import Transcript


class Progress:
    """Tells of a guest's boot.

    Attributes:
        line: where it is told.
    """

    def __init__(
        self,
        line: StatusLine,
        folder: GuestFolder,
        started: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Tell nothing yet.

        Args:
            folder: the guest's, where its block server says what came and what it waits for.
            started: when the command did, in seconds of `clock`.
            clock: Unix time, as in the guest's folder.
        """
        self.line = line
        self._folder = folder
        self._started = started
        self._clock = clock
        self._pace = Pace(clock)

    def draw(self, transcript: Transcript) -> None:
        """Tell how far a guest is that has printed this."""
        if is_quiet():
            return
        now = self._clock()
        parts = [
            tr(
                "booting, {seconds:.0f} s: {phase}",
                seconds=now - self._started,
                phase=_phase(transcript),
            )
        ]
        waiting = self._folder.read_waiting()
        if waiting is not None:
            parts.append(
                tr("waits {now:.0f} s: {what}", now=now - waiting.since, what=waiting.what)
            )
        parts += self._came(with_rate=waiting is None)
        self.line.draw(translated(joined("; ", parts)))

    def finish(self, after: float) -> None:
        """Tell that the guest shows its prompt, `after` seconds ago."""
        if is_quiet():
            return
        up = self._clock() - after - self._started
        told = [tr("p2pcloop: up after {up:.1f} s", up=up), *self._came()]
        self.line.finish(translated(joined(", ", told)))

    def _came(self, *, with_rate: bool = False) -> list[str]:
        came = self._folder.read_fetched()
        if came is None:
            return []
        rate = self._pace.rate(came.count)
        told = tr("{count} fetched", count=format_size(came.count))
        if with_rate and rate:
            told += f", {format_size(rate)}/s"
        return [
            told,
            tr("first byte after {first:.1f} s", first=max(0.0, came.first - self._started)),
        ]


def _phase(transcript: Transcript) -> str:
    if transcript.started:
        return printable(transcript.started)
    return tr("kernel") if transcript.tail else tr("starting")
