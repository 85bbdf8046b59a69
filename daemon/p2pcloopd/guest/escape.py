"""The escape key of a guest's console: every other key goes to the guest.

telnet and `virsh console` use Ctrl-] too. Unlike ssh's `~.` it needs no Enter before it, which an
editor would take; unlike screen's Ctrl-A it is used by no shell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

Command = Literal["help", "shutdown", "kill", "send"]

ESCAPE = 0x1D
"""Ctrl-], or Ctrl-5 on a keyboard without a key for the bracket."""

_COMMANDS: dict[int, Command] = {
    ord("s"): "shutdown",
    ord("K"): "kill",
    ord("i"): "send",
    ord("?"): "help",
}

BRIEF = "all keys go to the guest; Ctrl-] is the escape: Ctrl-] ? tells more, Ctrl-] s shuts down"

HELP = """\
Ctrl-] s       shut the guest down in order; again: end it
Ctrl-] K       end it at once, as pulling the plug does
Ctrl-] i       type what is held back until the guest shows a prompt
Ctrl-] Ctrl-]  send Ctrl-] to the guest
Ctrl-] ?       this help"""


class EscapeFilter:
    """Splits what is typed into text for the guest and commands for this process."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> Iterator[bytes | Command]:
        """Take what was typed next, and yield it in order: text, and commands.

        An escape without a command behind it is dropped with the key that follows, and yields the
        command that shows the help.
        """
        text = bytearray()
        for byte in data:
            if not self._escaped:
                if byte == ESCAPE:
                    self._escaped = True
                else:
                    text.append(byte)
                continue
            self._escaped = False
            if byte == ESCAPE:
                text.append(byte)
                continue
            if text:
                yield bytes(text)
                text.clear()
            yield _COMMANDS.get(byte, "help")
        if text:
            yield bytes(text)
