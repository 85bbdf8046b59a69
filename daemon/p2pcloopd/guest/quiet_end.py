"""What a kernel prints after its final message is kept from a terminal, if the guest ends well.

UML's newer kernels let go of the disk while the root is still mounted, and tell of each write that
then fails. After an orderly end nothing is lost, and the messages say nothing to a user.
"""

from __future__ import annotations

import re

import trio

from p2pcloopd.guest.console.console import Screen

HELD_SECONDS = 1.0
"""A kernel has ended by then. One that goes on did not print that message: a program did."""

END_SECONDS = 5.0
"""How long a terminal may take to show what was held back of a guest that has ended."""

_HELD = 1 << 14
_LINE = 128
_FINAL = re.compile(
    rb"(?:^|\n|\[ *\d+\.\d+\] )reboot: (?:Power down|System halted|Restarting system)\r*\n"
)


class QuietEnd:
    """Stands before the screen of a guest.

    Attributes:
        is_good: whether the guest has ended well; to be set before `end`.
    """

    def __init__(self, screen: Screen) -> None:
        self.is_good = False
        self._screen = screen
        self._tail = b""
        self._held = b""
        self._is_final = trio.Event()

    async def write(self, data: bytes) -> None:
        """Show what was printed next, unless it comes after the final message."""
        if self._is_final.is_set():
            self._held += data
            if len(self._held) > _HELD:
                await self.show()
            return
        seen = self._tail + data
        self._tail = seen[-_LINE:]
        if final := _FINAL.search(seen):
            begin = len(data) - (len(seen) - final.end())
            self._held = data[begin:]
            data = data[:begin]
            self._is_final.set()
        await self._screen.write(data)

    async def run(self) -> None:
        """Show what was held back of a guest that goes on, until cancelled."""
        while True:
            await self._is_final.wait()
            await trio.sleep(HELD_SECONDS)
            await self.show()

    async def show(self) -> None:
        """Show what was held back."""
        held, self._held, self._tail = self._held, b"", b""
        self._is_final = trio.Event()
        if held:
            await self._screen.write(held)

    async def end(self) -> None:
        """Show what was held back, unless the guest has ended well."""
        if not self.is_good:
            with trio.move_on_after(END_SECONDS, shield=True):
                await self.show()
