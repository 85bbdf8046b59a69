"""The output of a program in a sandbox: its last bytes are kept, for error messages."""

from __future__ import annotations

import os

import trio

_TAIL = 4096
_LINES = 4


class NativeOutput:
    """A pipe; the writing end is for the program.

    Attributes:
        write_end: a descriptor, to be closed here once the program has it.
        tail: the last bytes that were written.
    """

    def __init__(self) -> None:
        read_end, self.write_end = os.pipe()
        self._stream = trio.lowlevel.FdStream(read_end)
        self.tail = b""

    async def collect(self) -> None:
        """Read until no process has the writing end open."""
        async for data in self._stream:
            self.tail = (self.tail + data)[-_TAIL:]

    @property
    def last_words(self) -> str:
        """The last lines, as one."""
        return " / ".join(self.tail.decode(errors="replace").strip().splitlines()[-_LINES:])

    def close_write_end(self) -> None:
        """Leave the pipe to the program; a second call does nothing."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        """Close both ends."""
        self.close_write_end()
        self._stream.close()
