"""Input for a guest, typed or piped: it is held until the guest reads it.

Input is held until a prompt stands at the guest's console (prompts.py says why). At a login prompt
one line is let through; the rest waits for the next prompt. From a shell's prompt on, all keys of a
terminal go through. Of a pipe or a file, one line goes through at each prompt: a shell may read
more than its own line of the input (busybox's does), and so take what the line's command should
read. If no prompt follows a line, its command is still running and reads, so it gets all the rest.

When the input has ended, a guest that waits at its prompt has nothing more to do.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import trio

from p2pcloopd.guest.console.console import CHUNK, read_ready
from p2pcloopd.guest.console.escape import BOOT, Command, EscapeFilter
from p2pcloopd.guest.console.prompts import (
    QUIET_SECONDS,
    UNKNOWN_SECONDS,
    Prompt,
    PromptWatch,
)

END_SECONDS = 2.0
"""How long a guest stands at its prompt after the end of its input to count as done; as long
without a prompt, and what runs there is told that the input has ended (Ctrl-D)."""

_NEXT_PROMPT_SECONDS = 0.05
"""How long the prompt has to stand that follows on a typed line."""

_LIMIT = 1 << 16
"""Bytes of input that are held at most."""

_END_OF_TRANSMISSION = b"\x04"
_LINE = re.compile(rb"[^\r\n]*[\r\n]?")
_SIGNALS = re.compile(rb"[\x03\x1a\x1c]")
"""Ctrl-C, Ctrl-Z and Ctrl-backslash: they act when they are pressed, whatever was typed before."""


class Typed(Protocol):
    """What input is typed on: a `Pty`, or another process's."""

    async def send(self, data: bytes) -> None:
        """Type `data`; waits while the guest does not read."""


class Keyboard:
    """The input of a guest. After a reboot, what is left of it is typed on."""

    def __init__(
        self,
        fd: int,
        *,
        on_command: Callable[[Command], None] | None = None,
        commands: Mapping[int, Command] = BOOT,
    ) -> None:
        """Read nothing yet.

        Args:
            fd: the descriptor of the input.
            on_command: called with the escape's commands; None where `fd` is no terminal of ours,
                and every byte is the guest's.
            commands: the keys behind the escape.
        """
        self._is_script = not os.isatty(fd) and on_command is None
        self._fd = fd
        self._on_command = on_command
        self._escape = EscapeFilter(commands)
        self._ended = False
        self._held = bytearray()
        self._urgent = bytearray()
        self._gate: Literal["closed", "line", "answered", "open"] = "closed"
        self._prompt: Prompt | None = None
        self._changed = trio.Event()

    async def read(self) -> None:
        """Read the input until its end."""
        last = b"\n"
        while data := await self._receive():
            last = data[-1:]
            if self._on_command is None:
                self._held += data
            else:
                self._take_keys(data, self._on_command)
            self._report()
            while len(self._held) >= _LIMIT:
                await self._changed.wait()
        if self._is_script and last not in b"\r\n\x04":
            self._held += b"\n"  # a script's last line is one without it, too
        self._ended = True
        self._report()

    async def type_on(self, pty: Typed, watch: PromptWatch, *, held: bool = True) -> None:
        """Type on the keyboard of a guest.

        Args:
            held: whether the keys of a terminal are held until a prompt stands.

        Returns when the input has ended and the guest waits at its prompt.
        """
        self._gate = "closed" if held or self._is_script else "open"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_prompts, watch)
            typed = await self._type_all(pty, watch)
            nursery.cancel_scope.cancel()
        if typed:
            await _wait_until_done(pty, watch)
        else:
            await watch.wait(END_SECONDS)

    def _take_keys(self, data: bytes, on_command: Callable[[Command], None]) -> None:
        for piece in self._escape.feed(data):
            if isinstance(piece, str):
                if piece == "send":
                    self._gate = "open"
                else:
                    on_command(piece)
            elif self._gate == "closed":
                self._urgent += b"".join(_SIGNALS.findall(piece))
                self._held += _SIGNALS.sub(b"", piece)
            else:
                self._held += piece

    async def _follow_prompts(self, watch: PromptWatch) -> None:
        by_line = self._is_script
        while by_line or self._gate != "open":
            match self._gate:
                case "closed":
                    self._prompt = await watch.wait()
                    at_login = self._prompt == "login"
                    self._gate = "line" if at_login or by_line else "open"
                    self._report()
                case "answered":
                    self._gate = "line" if await self._prompt_follows(watch) else "open"
                    self._report()
                case "line":
                    await self._changed.wait()
                case "open":
                    if await watch.wait() == "shell":
                        self._gate = "line"
                    else:
                        await watch.changed()

    async def _prompt_follows(self, watch: PromptWatch) -> bool:
        """Tell whether the guest prints a prompt before it is quiet.

        A shell that has not echoed the line yet reads what is typed now itself: on a busy machine
        it may be that slow. The echo may be turned off, so it is not waited for for ever.
        """
        while True:
            prompt = watch.prompt
            is_prompt = prompt in ("login", "shell")
            quiet = QUIET_SECONDS if watch.has_answered else UNKNOWN_SECONDS
            with trio.move_on_after(_NEXT_PROMPT_SECONDS if is_prompt else quiet):
                await watch.changed()
                continue
            self._prompt = prompt
            return is_prompt

    async def _type_all(self, pty: Typed, watch: PromptWatch) -> bool:
        """Type until the end of the input; tell whether there was any."""
        typed = False
        while self._held or not self._ended:
            piece = self._next_piece(watch)
            if piece:
                typed = True
                self._report()
                await pty.send(piece)
            else:
                await self._changed.wait()
        return typed

    def _next_piece(self, watch: PromptWatch) -> bytes:
        """Take what may be typed now."""
        if self._urgent:
            piece = bytes(self._urgent)
            self._urgent.clear()
        elif self._gate in ("closed", "answered"):
            piece = b""
        elif self._gate == "open":
            piece = bytes(self._held)
            self._held.clear()
        else:
            found = _LINE.match(self._held)
            assert found is not None
            piece = found[0]
            del self._held[: len(piece)]
            if piece.endswith((b"\r", b"\n")):
                self._gate = "closed" if self._prompt == "login" else "answered"
                watch.forget()
        return piece

    def _report(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _receive(self) -> bytes:
        try:
            return await read_ready(self._fd, CHUNK)
        except OSError as err:
            # The terminal is gone; or standard input is closed, or cannot be read (`nohup`).
            if err.errno not in (errno.EIO, errno.EBADF):
                raise
            return b""


async def _wait_until_done(pty: Typed, watch: PromptWatch) -> None:
    """Return when the guest waits at its prompt, all of its input behind it."""
    told = False
    while True:
        with trio.move_on_after(END_SECONDS):
            await watch.changed()
            continue
        prompt = watch.prompt
        if prompt in ("login", "shell") or (told and prompt == "other"):
            return
        if told:
            await watch.changed()
        else:
            # A program that runs there may read. A shell that is not at its prompt yet reads
            # this after all the rest.
            await pty.send(_END_OF_TRANSMISSION)
            told = True
