"""Tells other programs how much came for a guest: one line in a file (store/guests.py reads it)."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from p2pcloop.store.guests import Fetched


class FetchedFile:
    """Holds the number of bytes that came, and when the first of them did.

    A line that cannot be written is left out: it only informs.
    """

    def __init__(self, path: Path | None) -> None:
        """`path` is where the line goes, or None for nowhere."""
        self._path = path
        self._fd = -1
        self._bytes = 0
        self._first = 0.0

    def add(self, length: int) -> None:
        """Count bytes that came."""
        if self._path is None:
            return
        self._first = self._first or time.time()
        self._bytes += length
        line = Fetched(self._bytes, self._first).encode()
        with suppress(OSError):
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._fd, line, 0)
