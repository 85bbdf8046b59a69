"""A guest's output before its first prompt: kept from the terminal, and shown if it matters.

A boot prints some 250 lines, which say nothing to most users. In their place stands one line of
progress. At the guest's prompt the terminal goes on with that prompt, and with what belongs to it.
All that was held back is shown where the boot may have gone wrong: the guest ends or is told to
end, is silent for long, or asks another question than for a login.
"""

from __future__ import annotations

import re

import trio

from p2pcloopd.guest.console.console import Screen
from p2pcloopd.guest.console.prompts import Prompt, PromptWatch
from p2pcloopd.guest.progress import Progress
from p2pcloopd.guest.quiet_end import END_SECONDS
from p2pcloopd.guest.transcript import CONTROLS, PROMPT, Transcript

_REDRAW_SECONDS = 0.25
_KEPT = 1 << 18
"""Bytes that are held back at least: ten boots. Of more, the last ones are."""

_GREETING_LINES = 8
_TROUBLE = re.compile(rb"(emergency|rescue) mode|for maintenance")
_LINE = re.compile(rb"[^\n]*\n|[^\n]+\Z")
_NOTABLE = re.compile(rb"p2pcloop: (?!starts )|\[FAILED\]")
_QUESTIONS = re.compile(rb"\x1b\[[0-9;?>=]*[nc]")
"""Questions to the terminal: an answer would come too late, and be typed to another program."""


class QuietStart:
    """Stands between a guest and its sink until the first prompt of a boot."""

    def __init__(self, sink: Screen, progress: Progress, transcript: Transcript) -> None:
        """Hold back what the guest prints.

        Args:
            transcript: is given all output before this is.
        """
        self._sink = sink
        self._progress = progress
        self._transcript = transcript
        self._held = bytearray()
        self._is_cut = False
        self._is_open = False
        self._changed_at = trio.current_time()
        self._lock = trio.Lock()

    async def write(self, data: bytes) -> None:
        """Hold back what was printed next, or show it."""
        if self._is_open:
            async with self._lock:  # what was held back comes first
                await self._sink.write(data)
            return
        self._changed_at = trio.current_time()
        self._held += data
        if len(self._held) > 2 * _KEPT:
            begin = len(self._held) - _KEPT
            del self._held[: max(begin, self._held.find(b"\n", begin) + 1)]
            self._is_cut = True
        if self._transcript.prompt_time is not None:
            await self._show_prompt("login")

    async def run(self, watch: PromptWatch) -> None:
        """Tell the progress until the first prompt, and show that."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._redraw)
            prompt = await watch.wait()
            nursery.cancel_scope.cancel()
        await self._show_prompt(prompt)

    async def show_all(self) -> None:
        """Show all that was held back, and from now on all that is printed."""
        if self._is_open:
            return
        self._progress.line.erase()
        cut = b"[...]\r\n" if self._is_cut else b""
        await self._open(cut + bytes(self._held))

    async def end(self) -> None:
        """Show all that was held back, of a guest that has ended."""
        with trio.move_on_after(END_SECONDS, shield=True):
            await self.show_all()

    async def _redraw(self) -> None:
        while not self._is_open:
            self._progress.draw(self._transcript)
            await trio.sleep(_REDRAW_SECONDS)

    async def _show_prompt(self, prompt: Prompt) -> None:
        if self._is_open:
            return
        is_login = self._transcript.prompt_time is not None
        if _TROUBLE.search(self._held) or not (is_login or prompt == "shell"):
            await self.show_all()
            return
        self._progress.finish(trio.current_time() - self._changed_at)
        await self._open(shown_at_prompt(bytes(self._held)))

    async def _open(self, shown: bytes) -> None:
        self._is_open = True
        self._held.clear()
        async with self._lock:
            await self._sink.write(_QUESTIONS.sub(b"", shown))


def shown_at_prompt(held: bytes) -> bytes:
    """What a user should see of a boot that has come to its prompt.

    Returns:
        Messages of p2pcloop and of units that failed; the prompt's line, and what follows; and
        before it a paragraph of a few lines, which is the greeting of a login (/etc/issue).
    """
    lines = _LINE.findall(held)
    texts = [CONTROLS.sub(b"", line).strip() for line in lines]
    logins = [number for number, text in enumerate(texts) if PROMPT.search(text)]
    last = max((number for number, text in enumerate(texts) if text), default=0)
    at = logins[-1] if logins else last
    begin = _greeting(texts, at)
    notable = [
        line for line, text in zip(lines[:begin], texts, strict=False) if _NOTABLE.match(text)
    ]
    return b"".join([*notable, *lines[begin:]])


def _greeting(texts: list[bytes], prompt: int) -> int:
    """The number of the first line of the paragraph before a prompt, or else of the prompt."""
    end = prompt
    while end and not texts[end - 1]:
        end -= 1
    begin = end
    while begin and texts[begin - 1] and end - begin <= _GREETING_LINES:
        begin -= 1
    is_paragraph = begin > 0 and end - begin <= _GREETING_LINES
    return begin if is_paragraph else prompt
