"""How long reads waited for bytes that were not here: a summary that takes little memory."""

from __future__ import annotations

from typing import Any

MAX_SAMPLES = 4096


class Waits:
    """Counts waits, and keeps every n-th of them for percentiles; n grows with their number."""

    def __init__(self) -> None:
        self._count = 0
        self._longest = 0.0
        self._every = 1
        self._samples: list[float] = []

    def add(self, seconds: float) -> None:
        """Record one wait."""
        if self._count % self._every == 0:
            self._samples.append(seconds)
            if len(self._samples) == MAX_SAMPLES:
                self._samples = self._samples[::2]
                self._every *= 2
        self._count += 1
        self._longest = max(self._longest, seconds)

    def report(self) -> dict[str, Any]:
        """Return their number, the median, the 99th percentile and the longest in milliseconds."""
        if not self._count:
            return {"count": 0}
        waits = sorted(self._samples)
        return {
            "count": self._count,
            "p50_ms": round(1000 * waits[len(waits) // 2], 3),
            "p99_ms": round(1000 * waits[len(waits) * 99 // 100], 3),
            "max_ms": round(1000 * self._longest, 3),
        }
