"""What a guest's console shows when it waits for a line, and what it shows when it does not."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pcloopd.guest.console.prompts import (
    QUIET_SECONDS,
    UNKNOWN_SECONDS,
    Prompt,
    PromptWatch,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\r\nDebian GNU/Linux 12 demo tty0\r\n\r\ndemo login: ", "login"),
        ("demo login: root\r\nPassword: ", "login"),
        ("Give root password for maintenance\r\n(or press Control-D to continue): ", "login"),
        ("demo login: root (automatic login)\r\n\r\n", None),
        ("\x1b[?2004hroot@p2pcloop:~# ", "shell"),
        ("\x1b[01;32mme@box\x1b[00m:\x1b[01;34m~\x1b[00m$ ", "shell"),
        ("\x1b]0;root@box: ~\x07root@box:~# ", "shell"),
        ("tiny# \x1b[6n", "shell"),
        ("bash-5.2#", "shell"),
        ("mysql> ", "shell"),
        ("/ # ls\r\n", None),
        ("Starting periodic command scheduler: ", "other"),
        ("[  OK  ] Reached target Login Prompts.\r\n", None),
        ("[***   ] A start job is running for foo (3s)\r", "other"),
        ("Unpacking 45%\rUnpacking 50%", "other"),
        ("root@box:~# [   12.345678] random: crng init done\r\n", "shell"),
        ("[   12.345678] random: crng init done\r\n", None),
        ("", None),
        ("   \r\n  ", None),
    ],
)
def test_what_stands_at_the_end(text: str, expected: Prompt | None) -> None:
    whole, by_byte = PromptWatch(), PromptWatch()
    whole.take(text.encode())
    for byte in text.encode():
        by_byte.take(bytes([byte]))
    assert whole.prompt == by_byte.prompt == expected


def test_the_kernel_answers_no_line_that_was_typed() -> None:
    whole, by_byte = PromptWatch(), PromptWatch()
    for watch in (whole, by_byte):
        watch.take(b"root@box:~# ")
        watch.forget()
    said = b"[   12.345678] random: crng init done\r\n"
    whole.take(said + b"echo 1")
    for byte in said + b"echo 1":
        by_byte.take(bytes([byte]))
    assert not whole.has_answered
    assert not by_byte.has_answered
    for watch in (whole, by_byte):
        watch.take(b"\r\n")
        assert watch.has_answered


def test_a_line_without_end_takes_no_room() -> None:
    watch = PromptWatch()
    for _ in range(1000):
        watch.take(b"x" * 4096)
    assert len(watch._line) <= 1024
    watch.take(b"\r\n# ")
    assert watch.prompt == "shell"


async def test_only_what_stands_is_a_prompt(autojump_clock: MockClock) -> None:
    watch = PromptWatch()
    start = trio.current_time()

    async def guest() -> None:
        watch.take(b"demo login: ")
        await trio.sleep(QUIET_SECONDS / 2)
        watch.take(b"root (automatic login)\r\n")
        await trio.sleep(100)
        watch.take(b"Starting foo: ")
        await trio.sleep(UNKNOWN_SECONDS / 2)
        watch.take(b"done.\r\nroot@demo:~# ")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest)
        assert await watch.wait() == "shell"
    waited = QUIET_SECONDS / 2 + 100 + UNKNOWN_SECONDS / 2 + QUIET_SECONDS
    assert trio.current_time() - start == pytest.approx(waited)


async def test_a_prompt_of_another_look_stands_for_long(autojump_clock: MockClock) -> None:
    watch = PromptWatch()
    watch.take("fancy λ ".encode())
    start = trio.current_time()
    assert await watch.wait() == "other"
    assert trio.current_time() - start == pytest.approx(UNKNOWN_SECONDS)
