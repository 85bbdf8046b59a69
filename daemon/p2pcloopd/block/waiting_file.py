"""Tells other programs what a guest's reads wait for: one line in a file, gone when they go on."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path


class WaitingFile:
    """Holds one line while a guest waits: the newest. Its time of change is when the wait began.

    A line that cannot be written is left out: it only informs.
    """

    def __init__(self, path: Path | None) -> None:
        """`path` is where the line goes, or None for nowhere."""
        self._path = path
        self._since: float | None = None

    def report(self, what: str, seconds: float = 0) -> None:
        """Say what the guest waits for, `seconds` already if that is the first line of a wait."""
        if self._path is None:
            return
        if self._since is None:
            self._since = time.time() - seconds
        new = self._path.with_name(self._path.name + ".new")
        with suppress(OSError):
            new.write_text(what + "\n", encoding="utf-8", errors="replace")
            os.utime(new, (self._since, self._since))
            new.replace(self._path)  # at once: the line is read at any time

    def clear(self) -> None:
        """Say that the guest waits for nothing."""
        if self._path is not None and self._since is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
                self._since = None
