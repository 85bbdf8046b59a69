"""Lines for the user while machines are served: a terminal that takes no more delays no disk.

A thread writes them, since a write to a terminal or a pipe may wait for ever. What it cannot write
in time is lost, and so is all of it once the terminal is gone.
"""

from __future__ import annotations

import logging
import os
import queue
import threading

from p2pcloop.text import printable

MAX_LINES = 256
"""Lines that wait to be written."""

_END_SECONDS = 2.0


class Teller:
    """Writes lines to a descriptor, in order; a line that is equal to the last one is left out."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._last = ""
        self._lines: queue.Queue[bytes | None] = queue.Queue(MAX_LINES)
        # A daemon: at the end of the process it may still wait for the terminal.
        self._thread = threading.Thread(target=self._write, name="teller", daemon=True)
        self._thread.start()

    def tell(self, text: str) -> None:
        """Have a line written; it returns at once, and raises nothing."""
        if text == self._last:
            return
        try:
            line = f"p2pcloop: {printable(text)}\n"
            self._lines.put_nowait(line.encode("utf-8", "backslashreplace"))
            self._last = text
        except queue.Full:
            pass  # the terminal has stalled: it would be told too late

    def close(self) -> None:
        """Return when all is written, or the terminal has not taken it for two seconds."""
        try:
            self._lines.put(None, timeout=_END_SECONDS)
        except queue.Full:
            return
        self._thread.join(_END_SECONDS)

    def _write(self) -> None:
        # Not by `sys.stderr`: its lock, held for ever, would stop the interpreter's end.
        while (data := self._lines.get()) is not None:
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except OSError:  # the terminal was closed, or a disk is full
                    break


class TellingHandler(logging.Handler):
    """Writes the log of this process by a teller."""

    def __init__(self, teller: Teller) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))  # else basicConfig sets its own
        self._teller = teller

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self._teller.tell(self.format(record))
