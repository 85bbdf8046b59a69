"""One line at the bottom of the terminal that is drawn anew, and messages above it.

Meanwhile standard error is a pipe, also for processes that are forked: whichever writes a message,
it is shown whole, above the line.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

from p2pcloop.cells import cells, clipped, padded

_STDERR = 2
_COLUMNS = 80
_RECEIVE_SIZE = 1 << 16


class StatusLine:
    """A line on a terminal; other output may follow where it was taken away."""

    def __init__(self, terminal: int, messages: int) -> None:
        """Draw nothing yet.

        Args:
            terminal: the descriptor of the terminal; line ends are made here, since it may be raw.
            messages: the end of a pipe from which messages are read; it does not block.
        """
        self._terminal = terminal
        self._messages = messages
        self._drawn = ""
        self._unfinished = b""

    def draw(self, text: str) -> None:
        """Show `text` in place of what stood there, as much of it as fits into one line. A terminal
        that takes nothing now goes without it."""
        if not self._takes_more():
            return
        line = clipped(text, self._columns() - 1)
        self._write(f"\r{padded(line, cells(self._drawn))}".encode())
        self._drawn = line

    def erase(self) -> None:
        """Take the line away; what is printed next begins in its place."""
        if self._drawn:
            self._write(f"\r{' ' * cells(self._drawn)}\r".encode())
            self._drawn = ""

    def finish(self, text: str) -> None:
        """Leave `text` in place of the line, for good."""
        self.erase()
        self._write(f"{text}\r\n".encode())

    async def carry(self) -> None:
        """Show the messages that come, for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._messages)
            self.carry_now()

    def carry_now(self) -> None:
        """Show the messages that have come."""
        with suppress(BlockingIOError):
            while data := os.read(self._messages, _RECEIVE_SIZE):
                *lines, self._unfinished = (self._unfinished + data).split(b"\n")
                if lines:
                    self._show(lines)

    def _show(self, lines: list[bytes]) -> None:
        drawn = self._drawn
        self.erase()
        # Without the line the guest may be in the middle of one of its own.
        text = b"".join(line.rstrip(b"\r") + b"\r\n" for line in lines)
        self._write(text if drawn else b"\r\n" + text)
        if drawn:
            self.draw(drawn)

    def _takes_more(self) -> bool:
        waiting = select.poll()
        waiting.register(self._terminal, select.POLLOUT)
        return bool(waiting.poll(0))

    def _columns(self) -> int:
        with suppress(OSError):
            return os.get_terminal_size(self._terminal).columns or _COLUMNS
        return _COLUMNS

    def _write(self, data: bytes) -> None:
        with suppress(OSError):  # the terminal may be gone
            while data:
                data = data[os.write(self._terminal, data) :]


@contextmanager
def status_line() -> Iterator[StatusLine]:
    """A line on the terminal that is this process's standard error, which is a pipe meanwhile.

    At the end the line is gone, and all messages are shown. This must be entered before processes
    are forked whose messages belong above the line.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    sys.stderr.flush()
    terminal = os.dup(_STDERR)
    os.dup2(write_end, _STDERR)
    os.close(write_end)
    line = StatusLine(terminal, read_end)
    try:
        yield line
    finally:
        sys.stderr.flush()
        os.dup2(terminal, _STDERR)
        line.carry_now()
        line.erase()
        os.close(terminal)
        os.close(read_end)
