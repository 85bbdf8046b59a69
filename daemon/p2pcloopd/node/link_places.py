"""Where this node's own links led lately: `link-places` in the home, text, one a line.

A link of an earlier version of a name is where the node finds it again. So the addresses that the
node had then come among those of the other peers and mirrors, and later links would name them, too.
Each has the last day on which a link named it: `2026-11-30 192.0.2.1:6881`. Some days after that it
may be another node's. p2pcloopd alone writes the file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from p2pcloop.errors import StorageError
from p2pcloop.formats.named import read_file
from p2pcloop.store.home import replace_file

MAX_PLACES = 512
"""Those named last."""

MAX_AGE = timedelta(days=14)
"""An address that is named although it leads nowhere costs a reader less than one left out."""

_MAX_PLACE = 300
_LAST_DAY = date.max.isoformat()
_MAX_LINE = _MAX_PLACE + len(f"{_LAST_DAY} \n")

_log = logging.getLogger(__name__)


class LinkPlaces:
    """The node's own places, now and lately: `host:port` of peers, and base URLs.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._days = {place: day for day, _, place in (line.partition(" ") for line in _load(path))}
        self._is_kept = True

    def __contains__(self, place: str) -> bool:
        return self._is_recent(self._days.get(place, ""))

    def note(self, places: Iterable[str]) -> None:
        """Keep what a link is about to name; durably, unless the system refuses."""
        today = self._day(timedelta())
        now = {place: today for place in places if len(place) < _MAX_PLACE}
        before = {
            place: day
            for place, day in self._days.items()
            if place not in now and self._may_count(day)
        }
        known = [*before.items(), *now.items()][-MAX_PLACES:]
        if known == [*self._days.items()] and self._is_kept:
            return
        self._days = dict(known)
        lines = "".join(f"{day} {place}\n" for place, day in known)
        try:
            replace_file(self._path, lines.encode())
            self._is_kept = True
        except StorageError as err:  # links are made all the same, longer ones later
            _log.warning("%s", err)
            self._is_kept = False

    def _is_recent(self, day: str) -> bool:
        """Whether a link of that day counts; not one of a day to come, by a clock put back."""
        return self._may_count(day) and day <= self._day(timedelta())

    def _may_count(self, day: str) -> bool:
        """Whether it counts now or once the clock is right: it may be put back until it is set."""
        return self._day(MAX_AGE) <= day <= _LAST_DAY

    def _day(self, age: timedelta) -> str:
        return (datetime.fromtimestamp(self._clock(), UTC) - age).date().isoformat()


def _load(path: Path) -> list[str]:
    """A file that cannot be read costs no more than a longer link."""
    try:
        data = read_file(path, MAX_PLACES * _MAX_LINE)
    except FileNotFoundError:
        return []
    except OSError as err:
        _log.warning("%s is not used: %s", path, err)
        return []
    return data.decode(errors="replace").splitlines()[-MAX_PLACES:]
