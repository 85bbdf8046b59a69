"""When a guest waits for a line to be typed, as far as its console's output tells.

A guest loses what is typed before it reads: `getty`, `login` and PAM discard input that arrived
before their prompts (`tcflush`, `TCSAFLUSH`), and systemd hangs the console up before a login
starts there. The host cannot see this, nor whether a process reads: UML takes the bytes as soon as
the console is open. But it can see a prompt, which is printed after the discarding: an unfinished
line that ends like a prompt, with no output behind it for a moment.
"""

from __future__ import annotations

import re
from typing import Literal

import trio

Prompt = Literal["login", "shell", "other"]
"""A question for a name or password, behind which another program reads; a shell's prompt; or
another unfinished line that stands for long."""

QUIET_SECONDS = 0.3
"""How long a prompt has to stand. A program that prints a text in two pieces is faster."""

UNKNOWN_SECONDS = 3.0
"""How long an unfinished line has to stand that does not look like a prompt. Programs that report
what they do, `Starting foo: `, are mostly faster; systemd's running stars move four times a
second."""

_TAIL = 1024
_CONTROLS = re.compile(
    rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b.|[\x00\x07]"
)
_LINE_END = re.compile(rb"\r*\n|\r(?!\r*\n|\r*$)")
_KERNEL_MESSAGE = re.compile(rb"\[ *\d+\.\d{6}\] ")
_LOGIN = re.compile(rb"(login|password|passphrase|continue\)?):[ \t]*$", re.IGNORECASE)
_SHELL = re.compile(rb"[#$>][ \t]*$")


class PromptWatch:
    """Follows the console's output, and tells when a prompt stands at its end.

    Attributes:
        has_answered: whether a line has ended since something was typed, other than the kernel's: a
            shell echoes the line that it reads.
    """

    def __init__(self) -> None:
        self._line = b""
        self.has_answered = False
        # Made by the tasks that wait: most of what a boot prints wakes none.
        self._changed: trio.Event | None = None
        self._asked: trio.Event | None = None

    def take(self, data: bytes) -> None:
        """Add what was printed next."""
        # A carriage return begins the line anew, unless it is one of the line's end.
        *before, self._line = _LINE_END.split((self._line + data)[-_TAIL:])
        self.has_answered |= not all(map(_KERNEL_MESSAGE.search, before))
        # A message that the kernel prints behind a prompt does not answer it.
        if not self._line and before and (message := _KERNEL_MESSAGE.search(before[-1])):
            self._line = before[-1][: message.start()]
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        if self._asked is not None and self.prompt is not None:
            self._asked.set()
            self._asked = None

    def forget(self) -> None:
        """Record that something was typed: the prompt that stands there was answered."""
        self._line = b""
        self.has_answered = False

    @property
    def prompt(self) -> Prompt | None:
        """The kind of prompt at the end of the output; None after a line's end."""
        if not self._line:
            return None
        text = _CONTROLS.sub(b"", self._line)
        if not text.strip():
            return None
        if _LOGIN.search(text):
            return "login"
        return "shell" if _SHELL.search(text) else "other"

    async def changed(self) -> None:
        """Return when something more was printed."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    async def wait(self, quiet: float = QUIET_SECONDS) -> Prompt:
        """Return once a prompt has stood for `quiet` seconds, or an unfinished line for long."""
        while True:
            prompt = self.prompt
            if prompt is None:
                await self._is_asked()
                continue
            with trio.move_on_after(max(quiet, UNKNOWN_SECONDS) if prompt == "other" else quiet):
                await self.changed()
                continue
            return prompt

    async def _is_asked(self) -> None:
        """Return once a prompt stands at the end of the output."""
        if self._asked is None:
            self._asked = trio.Event()
        await self._asked.wait()
