"""The words of the host to the agent in a guest, and the end of a command's output; sans-io.

The agent (daemon/p2pcloopd/guest/resources/agent.sh) is a shell script. It reads lines:

    run ID INPUT OUTPUT ERRORS MARK TOOLS COUNT    and then COUNT lines, a word of the command each
    kill ID SIGNAL
    end ID
    wake MARK SECONDS SLACK SEED HOSTNAME

ID is a number that the host chooses; INPUT, OUTPUT and ERRORS are the numbers of the ports for the
command's streams. With TOOLS 1 the words are a script for busybox's shell and its arguments, with 0
a program of the image and its arguments. In a word a backslash and a line feed are written as in C.

A guest that was resumed is told `wake`: the agent sets the clock to SECONDS since 1970, unless it
differs by SLACK at most, mixes in the random bytes SEED, and sets the host name; `-` stands for
what stays as it is. It answers on the same port, by the line `woken MARK BEHIND RESEEDS
CONNECTIONS`: the seconds by which the clock was late, `yes` if the kernel begins its random numbers
anew by itself, and how many connections lead nowhere now. MARK tells the answer from older ones.

The agent ends both outputs of a command with MARK, which the host has chosen at random: a process
that the command has left behind may hold them open, and would never end them. The mark is followed
by the command's exit code, in three digits: the host may have closed one of the outputs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from p2pcloop.errors import UsageError
from p2pcloop.words import tr

MAX_WORDS = 1 << 12
MAX_COMMAND = 1 << 16
"""Bytes of all words of a command together. The agent's shell reads them byte by byte."""

CODE_DIGITS = 3

_MARK_BYTES = 16


def new_mark() -> bytes:
    """Return what no command prints by chance."""
    return os.urandom(_MARK_BYTES).hex().encode()


def check_command(words: Sequence[bytes]) -> None:
    """Refuse a command that cannot be sent.

    Raises:
        UsageError: it has no words, too many, too long ones, or one with a null byte.
    """
    if not words or len(words) > MAX_WORDS or sum(map(len, words)) > MAX_COMMAND:
        raise UsageError(
            tr(
                "a guest's command has 1 to {max_words} words, of {max_command} KiB together",
                max_words=MAX_WORDS,
                max_command=MAX_COMMAND >> 10,
            ),
            hint="pass longer data through its standard input",
        )
    if any(b"\0" in word for word in words):
        raise UsageError("a word of a command cannot hold a null byte")


def encode_run(
    number: int, ports: tuple[int, int, int], mark: bytes, words: Sequence[bytes], *, tools: bool
) -> bytes:
    """Return the lines that have the agent run a command; see the module for their form."""
    head = b"run %d %d %d %d %s %d %d" % (number, *ports, mark, tools, len(words))
    escaped = (word.replace(b"\\", b"\\\\").replace(b"\n", b"\\n") for word in words)
    return b"".join(line + b"\n" for line in (head, *escaped))


def encode_kill(number: int, signal_name: str) -> bytes:
    """Return the line that has the agent send a signal to a command and its process group.

    Args:
        number: of the command.
        signal_name: `INT`, `TERM` and so on.
    """
    return b"kill %d %s\n" % (number, signal_name.encode())


def encode_end(number: int) -> bytes:
    """Return the line that has the agent let go of the streams of a command that has ended."""
    return b"end %d\n" % number


def encode_wake(mark: bytes, now: int, slack: int, seed: bytes, host_name: str) -> bytes:
    """Return the line that tells a resumed guest what it must know; see the module for its form.

    Args:
        mark: of the answer.
        now: seconds since 1970.
        slack: seconds by which the clock may differ.
        seed: random bytes; b"" for none.
        host_name: without white space; "" for the one that it has.
    """
    words = [seed.hex() or "-", host_name or "-"]
    return b"wake %s %d %d %s\n" % (mark, now, slack, " ".join(words).encode())


class WokenLine:
    """Finds the answer to `wake` in what the agent writes."""

    MOST = 1 << 12
    """Bytes that are kept of a line: what is longer is no answer."""

    def __init__(self, mark: bytes) -> None:
        self._start = b"woken %s " % mark
        self._held = b""

    def feed(self, data: bytes) -> bytes | None:
        """Take what came next; return the answer's words, once they are there."""
        *lines, held = (self._held + data).split(b"\n")
        self._held = held[: self.MOST]
        found = (line for line in lines if line.startswith(self._start))
        answer = next(found, None)
        return None if answer is None else answer.removeprefix(self._start)


class MarkedStream:
    """The output of a command, up to its mark.

    Attributes:
        ended: whether the mark, and what belongs behind it, has come.
        trailer: the bytes behind the mark.
    """

    def __init__(self, mark: bytes, trailer: int = 0) -> None:
        """Begin.

        Args:
            mark: ends the output.
            trailer: bytes that follow the mark.
        """
        self.ended = False
        self.trailer = b""
        self._mark = mark
        self._wanted = trailer
        self._found = False
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take what came next; return what is surely output. What follows the end is dropped."""
        if self.ended:
            return b""
        output = b""
        if not self._found:
            output, mark, rest = (self._held + data).partition(self._mark)
            self._found = bool(mark)
            if not self._found:
                kept = self._possible_mark(output)
                self._held = output[len(output) - kept :]
                return output[: len(output) - kept]
            self._held = b""
            data = rest
        self.trailer = (self.trailer + data)[: self._wanted]
        self.ended = len(self.trailer) == self._wanted
        return output

    def rest(self) -> bytes:
        """What was held back in case it began a mark; for an output that ended without one."""
        held, self._held = self._held, b""
        return held

    def _possible_mark(self, data: bytes) -> int:
        """How many bytes at the end of `data` may begin the mark."""
        longest = min(len(self._mark) - 1, len(data))
        return next((n for n in range(longest, 0, -1) if data.endswith(self._mark[:n])), 0)
