"""The escape key of a guest's console: every other key goes to the guest.

telnet and `virsh console` use Ctrl-] too. Unlike ssh's `~.` it needs no Enter before it, which an
editor would take; unlike screen's Ctrl-A it is used by no shell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from p2pcloop.words import tr

Command = Literal["help", "shutdown", "kill", "send", "leave"]

ESCAPE = 0x1D
"""Ctrl-], or Ctrl-5 on a keyboard without a key for the bracket."""

BOOT: dict[int, Command] = {
    ord("d"): "leave",
    ord("s"): "shutdown",
    ord("K"): "kill",
    ord("i"): "send",
    ord("?"): "help",
}
"""The keys behind the escape at the terminal of `boot`."""

ATTACHED: dict[int, Command] = {
    ord("d"): "leave",
    ord("s"): "shutdown",
    ord("K"): "kill",
    ord("i"): "send",
    ord("?"): "help",
}
"""The keys behind the escape at the terminal of `attach`."""

BRIEF = tr(
    "all keys go to the guest; Ctrl-] is the escape: Ctrl-] ? tells more, Ctrl-] s shuts down"
)

HELP = tr("""\
Ctrl-] s       shut the guest down in order; again: end it
Ctrl-] K       end it at once, as pulling the plug does
Ctrl-] i       type what is held back until the guest shows a prompt
Ctrl-] Ctrl-]  send Ctrl-] to the guest
Ctrl-] ?       this help""")

NOT_LEFT = tr("""\
p2pcloop: this command runs the guest, so the guest ends with it: it cannot be left
  `p2pcloop boot --detach` runs one that `attach` leaves; Ctrl-] s shuts this one down""")

ATTACHED_BRIEF = tr(
    "all keys go to the guest; Ctrl-] is the escape: Ctrl-] d leaves it, Ctrl-] ? tells more"
)

ATTACHED_HELP = tr("""\
Ctrl-] d       leave the guest, which runs on
Ctrl-] s       shut the guest down in order; again: end it
Ctrl-] K       end it at once, as pulling the plug does
Ctrl-] i       type what is held back until the guest shows a prompt
Ctrl-] Ctrl-]  send Ctrl-] to the guest
Ctrl-] ?       this help""")


class EscapeFilter:
    """Splits what is typed into text for the guest and commands for this process."""

    def __init__(self, commands: Mapping[int, Command] = BOOT) -> None:
        """`commands` are the keys behind the escape, and what they ask for."""
        self._commands = commands
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
            yield self._commands.get(byte, "help")
        if text:
            yield bytes(text)
