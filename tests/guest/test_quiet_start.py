"""A boot at a terminal is one line of progress; what the guest printed is shown if it matters."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pcloop.store.guests import Fetched, GuestFolder
from p2pcloop.store.home import Home
from p2pcloopd.guest.console.console import Sink
from p2pcloopd.guest.console.prompts import PromptWatch
from p2pcloopd.guest.console.status_line import StatusLine
from p2pcloopd.guest.progress import Progress
from p2pcloopd.guest.quiet_start import QuietStart, shown_at_prompt
from p2pcloopd.guest.transcript import Transcript

KERNEL = (
    b"Linux version 6.1\r\nFreeing unused memory\r\np2pcloop: starts /sbin/init (systemd)\r\r\n"
)
INIT = b"[  OK  ] Reached target Login Prompts.\r\r\n"
LOGIN = b"\r\nDebian GNU/Linux 12 vm tty1\r\n\r\nvm login: "


class Boot:
    """A guest whose console is a file, and whose progress is shown on a terminal."""

    def __init__(self, path: Path) -> None:
        self.started = 1000.0
        self.folder = GuestFolder(Home.at(path), "g1")
        self.folder.path.mkdir(parents=True)
        self._console = path / "console"
        self._sink = Sink(self._console)
        self._terminal, self._slave = os.openpty()
        os.set_blocking(self._terminal, False)
        self._messages, self._write_end = os.pipe()
        os.set_blocking(self._messages, False)
        self.line = StatusLine(self._slave, self._messages)
        self._watch = PromptWatch()
        self._transcript = Transcript(trio.current_time)
        self.progress = Progress(
            self.line, self.folder, self.started, lambda: self.started + trio.current_time()
        )
        self.quiet = QuietStart(self._sink, self.progress, self._transcript)

    def close(self) -> None:
        self._sink.close()
        for fd in (self._terminal, self._slave, self._messages, self._write_end):
            os.close(fd)

    async def print(self, data: bytes) -> None:
        """What `_Attended` does with each piece of the guest's output."""
        self._transcript.take(data)
        self._watch.take(data)
        await self.quiet.write(data)

    async def run(self) -> None:
        await self.quiet.run(self._watch)

    @property
    def console(self) -> bytes:
        """What the user sees of the guest's output."""
        return self._console.read_bytes()

    def told(self) -> list[str]:
        """What the terminal shows since this was last called: each state of the line."""
        text = b""
        with suppress(BlockingIOError):
            while True:
                text += os.read(self._terminal, 1 << 16)
        return [state.strip() for state in text.decode().split("\r") if state.strip()]

    def message(self, text: str) -> None:
        """Another process writes on standard error."""
        os.write(self._write_end, text.encode())
        self.line.carry_now()


@pytest.fixture
async def boot(tmp_path: Path) -> AsyncIterator[Boot]:
    made = Boot(tmp_path)
    yield made
    made.close()


async def test_one_line_until_the_login_and_then_the_guest(
    boot: Boot, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(boot.run)
        await trio.sleep(0.1)
        assert boot.told() == ["booting, 0 s: starting"]
        await boot.print(b"Linux version 6.1\r\n")
        await trio.sleep(1)
        assert boot.told()[-1] == "booting, 1 s: kernel"
        await boot.print(KERNEL)
        boot.folder.fetched_path.write_bytes(Fetched(4096, boot.started + 0.25).encode())
        await trio.sleep(0.5)
        assert boot.told()[-1] == (
            "booting, 2 s: /sbin/init (systemd); 4.1 kB fetched; first byte after 0.2 s"
        )
        boot.folder.fetched_path.write_bytes(Fetched(2_004_096, boot.started + 0.25).encode())
        await trio.sleep(2)
        assert "2.0 MB fetched, 888.9 kB/s; first byte" in boot.told()[-1]
        await boot.print(INIT)
        assert boot.console == b""
        await boot.print(LOGIN)
        # At once: no moment passes until it is sure that a login's prompt stands.
        assert boot.console == LOGIN.removeprefix(b"\r\n")
        assert autojump_clock.current_time() == 3.6
    assert boot.told() == ["p2pcloop: up after 3.6 s, 2.0 MB fetched, first byte after 0.2 s"]
    await boot.print(b"root\r\nPassword: ")
    assert boot.console.endswith(b"vm login: root\r\nPassword: ")


async def test_a_shell_has_its_prompt_once_it_stands(boot: Boot, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(boot.run)
        await trio.sleep(2)
        await boot.print(KERNEL + b"sh-5.2# ")
        assert boot.console == b""
    assert boot.console == b"sh-5.2# "
    assert autojump_clock.current_time() > 2
    assert boot.told()[-1] == "p2pcloop: up after 2.0 s"


async def test_what_a_guest_waits_for_is_told_with_how_long(
    boot: Boot, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(boot.run)
        boot.folder.waiting_path.write_text("no peer reachable; tried: 192.0.2.1:6881\n")
        os.utime(boot.folder.waiting_path, (boot.started, boot.started))
        for seconds in (5, 9):
            await trio.sleep(seconds - autojump_clock.current_time() + 0.1)
            expected = f"booting, {seconds} s: starting; waits {seconds} s: no peer reachable;"
            assert boot.told()[-1].startswith(expected)
        boot.folder.waiting_path.unlink()
        await trio.sleep(1)
        assert "waits" not in boot.told()[-1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "question",
    [
        b"Continue anyway, yes or no ",
        b"Password: ",
        b"You are in emergency mode.\r\nsh-5.2# ",
        b"Give root password for maintenance\r\n(or press Control-D to continue): ",
    ],
)
async def test_another_question_than_for_a_login_comes_with_all_that_was_printed(
    boot: Boot, autojump_clock: MockClock, question: bytes
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(boot.run)
        await boot.print(KERNEL + question)
    assert boot.console == KERNEL + question
    assert autojump_clock.current_time() > 0


async def test_all_is_shown_of_a_guest_that_ends_without_a_prompt(boot: Boot) -> None:
    await boot.print(KERNEL)
    await boot.print(b"Kernel panic - not syncing: \x1b[6n\x1b[c\x1b[?2004hthat\r\n")
    await boot.quiet.end()
    # The terminal is asked nothing: its answers would be typed into what runs then.
    assert boot.console == KERNEL + b"Kernel panic - not syncing: \x1b[?2004hthat\r\n"
    await boot.quiet.end()
    await boot.print(b"more\r\n")
    assert boot.console.endswith(b"that\r\nmore\r\n")


async def test_of_very_much_the_last_lines_are_shown(boot: Boot) -> None:
    for number in range(0, 60_000, 100):
        await boot.print(b"".join(b"line %d\r\n" % (number + each) for each in range(100)))
    await boot.quiet.end()
    first, second, *_, last = boot.console.splitlines()
    assert (first, last) == (b"[...]", b"line 59999")
    assert second.startswith(b"line ")
    assert 1 << 18 <= len(boot.console) <= 1 << 19


async def test_messages_stand_above_the_line(boot: Boot) -> None:
    boot.line.draw("booting")
    boot.message("p2pcloop: a")
    assert boot.told() == ["booting"], "half a line is not shown"
    boot.message(" warning\n")
    assert boot.told() == ["p2pcloop: a warning", "booting"]
    boot.line.finish("up")
    boot.told()
    boot.message("p2pcloop: behind the prompt\r\n")
    assert boot.told() == ["p2pcloop: behind the prompt"]


async def test_a_line_is_no_wider_than_the_terminal(boot: Boot) -> None:
    boot.line.draw("ü" * 300)
    [drawn] = boot.told()
    assert drawn == "ü" * 79


def test_what_p2pcloop_says_and_what_failed_is_shown_before_the_prompt() -> None:
    failed = b"[\x1b[0;1;31mFAILED\x1b[0m] Failed to start that.\r\r\n"
    said = b"p2pcloop: no account here has a password\r\r\n"
    assert shown_at_prompt(KERNEL + said + INIT + failed + INIT + LOGIN) == (
        said + failed + LOGIN.removeprefix(b"\r\n")
    )


def test_lines_directly_before_a_prompt_are_no_greeting() -> None:
    assert shown_at_prompt(KERNEL + INIT + b"vm login: ") == b"vm login: "
    many = b"\r\n" + INIT * 30
    assert shown_at_prompt(KERNEL + many + b"\r\nvm login: ") == b"vm login: "
    assert shown_at_prompt(b"vm login: ") == b"vm login: "
    assert shown_at_prompt(b"\r\n") == b"\r\n"


def test_a_terminal_that_takes_nothing_holds_up_no_guest() -> None:
    ours, terminal = os.openpty()
    os.set_blocking(terminal, False)
    with suppress(BlockingIOError):
        while True:
            os.write(terminal, bytes(4096))
    os.set_blocking(terminal, True)
    StatusLine(terminal, -1).draw("booting")
    for fd in (ours, terminal):
        os.close(fd)
