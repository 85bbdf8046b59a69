"""A guest that prints nothing is told of, once, unless it waits for its user."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pcloopd.guest.silence import SILENT_SECONDS, Silence
from p2pcloopd.guest.transcript import Transcript

STARTS = b"p2pcloop: starts /sbin/init (systemd)\r\r\n"


async def after_a_while(*printed: bytes) -> str | None:
    """What is said of a guest that prints these, one just before each silence would be one."""
    said: list[str | None] = []
    transcript = Transcript(trio.current_time)
    silence = Silence(transcript)

    async def watch() -> None:
        said.append(await silence.watch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        for data in printed:
            await trio.sleep(SILENT_SECONDS - 1)
            assert said == []
            transcript.take(data)
            silence.heard()
    return said[0]


async def test_what_runs_is_told(autojump_clock: MockClock) -> None:
    said = await after_a_while(b"Linux version 6.1\r\n", STARTS, b"[ OK ] it\r\n")
    assert said is not None
    assert said.startswith("has printed nothing for 20 s; it runs /sbin/init (systemd). ")
    assert autojump_clock.current_time() >= 3 * (SILENT_SECONDS - 1) + SILENT_SECONDS


async def test_a_guest_that_never_got_to_its_init(autojump_clock: MockClock) -> None:
    said = await after_a_while()
    assert said is not None
    assert "it runs the kernel alone, no init yet" in said
    assert autojump_clock.current_time() >= SILENT_SECONDS


@pytest.mark.parametrize("end", [b"vm login: ", b"sh-5.2# ", b"\x1b[?2004h\x1b[1mroot$\x1b[0m "])
async def test_a_guest_that_asks_is_not_silent(autojump_clock: MockClock, end: bytes) -> None:
    assert await after_a_while(STARTS, end) is None
    assert autojump_clock.current_time() >= SILENT_SECONDS
