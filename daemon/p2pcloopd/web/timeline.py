"""A boot's timeline, as the page draws it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from p2pcloop.formats.timeline import Span, Timeline, Wait
from p2pcloop.store.guests import GuestFolder, find_guest
from p2pcloop.store.home import Home

MAX_BINS = 320
"""Spans that are drawn: neighbours are joined until they are so few."""

_AFTER_SECONDS = 0.5
"""What is drawn behind a prompt."""

MAX_WAITS = 1000
"""Waits that are drawn: the longest ones."""


def timeline_facts(home: Home, name: str) -> dict[str, Any]:
    """When a guest's reads waited, counted in seconds from the start of its command.

    Raises:
        NotHereError: there is no such guest.
        FormatError: its timeline is damaged.
    """
    record = find_guest(home, name).record
    timeline = GuestFolder(home, name).read_timeline()
    if timeline is None:
        return {"waits": [], "spans": []}
    offset, boot = timeline.start - record.started, record.boot_seconds
    if boot is not None:
        timeline = until(timeline, boot - offset + _AFTER_SECONDS)
    return {"boot_seconds": boot} | drawn(timeline, offset)


def until(timeline: Timeline, seconds: float) -> Timeline:
    """What of a timeline began before a moment."""
    waits = [wait for wait in timeline.waits if wait.begin <= seconds]
    spans = [span for span in timeline.spans if span.begin + span.seconds <= seconds]
    return Timeline(timeline.start, waits, spans)


def drawn(timeline: Timeline, offset: float) -> dict[str, Any]:
    """What of a timeline is drawn, and sums over all of it.

    Args:
        offset: added to all times, in seconds.
    """
    longest = sorted(timeline.waits, key=lambda wait: -wait.seconds)[:MAX_WAITS]
    spans = join_spans(timeline.spans)
    return {
        "waits": [[_round(w.begin + offset), _round(w.seconds), w.length] for w in longest],
        "spans": [
            [_round(s.begin + offset), _round(s.seconds), s.came, round(s.busy, 2)] for s in spans
        ],
        "count": len(timeline.waits),
        "waited": _round(covered(timeline.waits)),
        "came": sum(span.came for span in timeline.spans),
    }


def covered(waits: Iterable[Wait]) -> float:
    """Seconds in which at least one of some waits went on."""
    total = end = 0.0
    for wait in sorted(waits, key=lambda wait: wait.begin):
        stop = wait.begin + wait.seconds
        total += max(0.0, stop - max(end, wait.begin))
        end = max(end, stop)
    return total


def join_spans(spans: Sequence[Span], most: int = MAX_BINS) -> list[Span]:
    """Join neighbours so that no more than about `most` are left; a long one stays by itself."""
    if len(spans) <= most:
        return list(spans)
    shortest = sum(span.seconds for span in spans) / most * 2
    found: list[Span] = []
    for span in spans:
        last = found[-1] if found else None
        if last is None or last.seconds >= shortest:
            found.append(span)
            continue
        seconds = last.seconds + span.seconds
        busy = (last.busy * last.seconds + span.busy * span.seconds) / (seconds or 1)
        found[-1] = Span(last.begin, seconds, last.came + span.came, busy)
    return found


def _round(seconds: float) -> float:
    return round(seconds, 3)
