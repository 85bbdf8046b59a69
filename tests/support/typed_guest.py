"""A guest of `run_guest`, whose console a test types on and reads."""

from __future__ import annotations

import re

import trio

from p2pcloopd.guest.result import GuestResult
from p2pcloopd.guest.running import RunningGuest


class TypedGuest:
    """Gets its output by `take`.

    Attributes:
        printed: all that it has printed.
        handle: set once it runs.
        result: set once it has ended.
    """

    def __init__(self) -> None:
        self.printed = b""
        self.handle = RunningGuest()
        self.result: GuestResult | None = None
        self._changed = trio.Event()

    def take(self, data: bytes) -> None:
        """Take what it printed next."""
        self.printed += data
        self._changed.set()
        self._changed = trio.Event()

    async def wait_for(self, pattern: bytes, start: int = 0) -> re.Match[bytes]:
        """Wait until what it has printed, from `start` on, has a pattern."""
        while (found := re.search(pattern, self.printed[start:], re.DOTALL)) is None:
            await self._changed.wait()
        return found

    async def sh(self, command: str) -> str:
        """Type a shell command and return what it prints."""
        start = len(self.printed)
        # What is typed is echoed, after the rest of an older prompt: that is not output.
        line = f"echo BEGIN''MARK; {command}; echo END''MARK\n"
        await self.handle.send_console(line.encode())
        found = await self.wait_for(rb"BEGINMARK\r*\n(.*)ENDMARK", start)
        return found[1].decode().replace("\r", "")
