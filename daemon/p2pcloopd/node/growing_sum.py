"""The sum of counters that come and go, for metrics that must never fall."""

from __future__ import annotations

from collections.abc import Mapping


class GrowingSum:
    """The sum of the counters of many things, which end, or begin at 0 again. It never falls.

    What a thing counted after the last look is lost when it ends.
    """

    def __init__(self) -> None:
        self._ended = 0
        self._last: dict[bytes, int] = {}

    def of(self, now: Mapping[bytes, int]) -> int:
        """The sum, from what the counters of the things that are there count now."""
        for key, value in self._last.items():
            if now.get(key, 0) < value:
                self._ended += value
        self._last = dict(now)
        return self._ended + sum(now.values())
