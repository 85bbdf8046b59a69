"""Measures the rate of a server's answers, without the time until they begin."""

from __future__ import annotations

_LEAST = 8 << 10
"""Bytes behind the first that came, from which on an answer tells something."""

_ENOUGH = 64 << 10
"""Bytes of them from which on all together do."""

_KEPT = 0.9
"""What the past counts at each new answer: the last ten or so make the rate."""


class Speed:
    """The answers of one server, of late."""

    def __init__(self) -> None:
        self._bytes = self._seconds = 0.0

    def record(self, size: int, seconds: float) -> None:
        """Note that so many bytes came in so long after the first of an answer."""
        if size >= _LEAST and seconds > 0:
            self._bytes = self._bytes * _KEPT + size
            self._seconds = self._seconds * _KEPT + seconds

    @property
    def rate(self) -> float | None:
        """Bytes a second; None where too little came yet."""
        return self._bytes / self._seconds if self._bytes >= _ENOUGH else None
