"""Tells other programs what a guest's reads wait for: one line in a file, gone when they go on."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path


class WaitingFile:
    """Holds one line while a guest waits. Its time of change is when the wait began.

    A line that cannot be written is left out: it only informs.
    """

    def __init__(self, path: Path | None) -> None:
        """`path` is where the line goes, or None for nowhere."""
        self._path = path
        self._is_there = False

    def report(self, what: str, seconds: float = 0) -> None:
        """Say what the guest waits for, `seconds` already; the first line of a wait stays."""
        if self._path is not None and not self._is_there:
            with suppress(OSError):
                self._path.write_text(what + "\n", encoding="utf-8", errors="replace")
                self._is_there = True
                since = time.time() - seconds
                os.utime(self._path, (since, since))

    def clear(self) -> None:
        """Say that the guest waits for nothing."""
        if self._path is not None and self._is_there:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
                self._is_there = False
