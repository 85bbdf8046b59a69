"""Drive a program's terminal as a person would: wait for a text, type a line, wait for the end.

Used on a guest's console; knows nothing of guests beyond that a root shell is at the other end.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import pty
import re
import secrets
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

_KEEP = 1 << 20  # characters of unread output to search in; a console says far less


class ConsoleError(Exception):
    """The program ended, or its output did not match in time."""


class NotInTimeError(ConsoleError):
    """The program runs on, but its output did not match in time."""


class Child(Protocol):
    """A process that was started; a `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; subprocess.TimeoutExpired after `timeout` seconds."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal, if it has not ended."""

    def terminate(self) -> None:
        """Send it SIGTERM, if it has not ended."""


Start = Callable[[Sequence[str], int, int], Child]
"""Starts a program in a session of its own: its arguments, the descriptor of its terminal, and that
of its standard error."""


class Console:
    """A child process on a pseudo-terminal; its standard error goes to a file of its own.

    Leaving the context ends the child if it has not ended by itself.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        errors: Path,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        patience: float = 15,
        start: Start | None = None,
    ) -> None:
        """Start `argv`.

        Args:
            log: takes all that the terminal shows.
            errors: takes the program's standard error.
            on_line: called with each finished line, without control sequences.
            patience: seconds between SIGTERM and SIGKILL when it must be ended; 0 kills at once.
            start: starts the program, which gets its environment by it; None runs `argv`.
        """

        def run(argv: Sequence[str], terminal: int, errors: int) -> Child:
            return subprocess.Popen(
                argv, stdin=terminal, stdout=terminal, stderr=errors, env=env,
                start_new_session=True,
            )  # fmt: skip

        self._on_line = on_line
        self._patience = patience
        self._line = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._unread = ""
        self._log: IO[bytes] = log.open("wb")
        self._master, slave = pty.openpty()
        try:
            termios.tcsetwinsize(slave, (50, 200))  # else long lines wrap in the middle of a text
            with errors.open("wb") as stderr:
                self.process = (start or run)(argv, slave, stderr.fileno())
        except OSError:
            self._close()
            raise
        finally:
            os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        self._close()

    def expect(self, pattern: str, timeout: float) -> re.Match[str]:
        """Wait until the output since the last match matches `pattern`; forget what precedes it.

        Raises:
            NotInTimeError: `timeout` seconds passed without it.
            ConsoleError: the program ended without it.
        """
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self._unread)):
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotInTimeError(f"no {pattern!r} on the console within {timeout:.0f} s")
            if not self._read(left):
                raise ConsoleError(f"the console ended before it showed {pattern!r}")
        self._unread = self._unread[match.end() :]
        return match

    def send_line(self, line: str) -> None:
        """Type `line` and Enter."""
        self.send(f"{line}\r".encode())

    def send(self, data: bytes) -> None:
        """Press some keys."""
        while data:
            data = data[os.write(self._master, data) :]

    def run(self, command: str, timeout: float) -> str:
        """Have the shell at the other end run `command`; return its output.

        Raises:
            ConsoleError: it failed, or did not end in time.
        """
        mark = secrets.token_hex(4)
        # The echo of the typed line shows `%s`, so only the outcome can match.
        self.send_line(f"printf '<<%s\\n' {mark}; {command}; printf '%s:%d>>\\n' {mark} $?")
        match = self.expect(rf"<<{mark}\r*\n((?s:.*)){mark}:(\d+)>>", timeout)
        if match[2] != "0":
            raise ConsoleError(f"{command!r} failed in the guest (exit {match[2]}): {match[1]}")
        return match[1].replace("\r", "")

    def wait(self, timeout: float) -> int:
        """Wait for the program's end, reading on; return its exit code.

        Raises:
            ConsoleError: it is still running after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if not self._read(left):
                break
        try:
            return self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ConsoleError(f"still running {timeout:.0f} s after its end was due") from None

    def end(self) -> None:
        """End the child, if it has not ended: SIGTERM, then SIGKILL for its whole group."""
        if self.process.poll() is not None:
            return
        if self._patience:
            self.process.terminate()
            try:
                self.process.wait(self._patience)
            except subprocess.TimeoutExpired:
                pass
            else:
                return
        with contextlib.suppress(ProcessLookupError):  # it has ended just now
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _read(self, timeout: float) -> bool:
        """Read output of the terminal, waiting up to `timeout` seconds; False at its end."""
        ready, _, _ = select.select([self._master], [], [], timeout)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: no process holds the other end any more
            return False
        if not data:
            return False
        self._log.write(data)
        self._log.flush()
        text = self._decoder.decode(data)
        self._unread = (self._unread + text)[-_KEEP:]
        if self._on_line:
            self._tell_lines(text, self._on_line)
        return True

    def _tell_lines(self, text: str, on_line: Callable[[str], None]) -> None:
        *lines, self._line = (self._line + text)[-_KEEP:].split("\n")
        for line in lines:
            if plain := strip_controls(line):
                on_line(plain)

    def _close(self) -> None:
        os.close(self._master)
        self._log.close()


def strip_controls(line: str) -> str:
    """The readable part of a terminal line: no escape sequences, no control characters."""
    line = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b.", "", line)
    return "".join(c for c in line if c.isprintable()).strip()
