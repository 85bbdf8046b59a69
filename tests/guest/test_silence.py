"""A guest that prints nothing is told of, once, unless it waits for its user."""

from __future__ import annotations

import time

import pytest
import trio
from trio.testing import MockClock

from p2pcloop.store.guests import Waiting
from p2pcloopd.guest.silence import SILENT_SECONDS, Silence, Silent
from p2pcloopd.guest.transcript import Transcript

STARTS = b"p2pcloop: starts /sbin/init (systemd)\r\r\n"


async def after_a_while(*printed: bytes) -> Silent | None:
    """What is said of a guest that prints these, one just before each silence would be one."""
    said: list[Silent | None] = []
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
    silent = await after_a_while(b"Linux version 6.1\r\n", STARTS, b"[ OK ] it\r\n")
    assert silent is not None
    assert not silent.waits
    assert silent.said.startswith("has printed nothing for 20 s; it runs /sbin/init (systemd). ")
    assert autojump_clock.current_time() >= 3 * (SILENT_SECONDS - 1) + SILENT_SECONDS


async def test_a_guest_that_never_got_to_its_init(autojump_clock: MockClock) -> None:
    silent = await after_a_while()
    assert silent is not None
    assert "it runs the kernel alone, no init yet" in silent.said
    assert autojump_clock.current_time() >= SILENT_SECONDS


async def test_a_disk_that_boots_by_itself(autojump_clock: MockClock) -> None:
    silence = Silence(Transcript(trio.current_time), by_firmware=True)
    silent = await silence.watch()
    assert silent is not None
    for what in ("console=ttyS0", "drivers of virtio", "--firmware"):
        assert what in silent.said
    assert autojump_clock.current_time() >= SILENT_SECONDS


@pytest.mark.parametrize("end", [b"vm login: ", b"sh-5.2# ", b"\x1b[?2004h\x1b[1mroot$\x1b[0m "])
async def test_a_guest_that_asks_is_not_silent(autojump_clock: MockClock, end: bytes) -> None:
    assert await after_a_while(STARTS, end) is None
    assert autojump_clock.current_time() >= SILENT_SECONDS


async def test_a_wait_that_is_known_is_told_once_and_nothing_else_is_advised(
    autojump_clock: MockClock,
) -> None:
    waits: list[Waiting | None] = [Waiting("no peer reachable; tried: a:1 (timed out)", 1000.0)]
    silence = Silence(Transcript(trio.current_time), lambda: waits[-1])
    silent = await silence.watch()
    assert silent is not None
    assert silent.waits
    assert "for data" in silent.said
    assert "(no peer reachable; tried: a:1 (timed out))" in silent.said
    assert "init=" not in silent.said
    # The same wait, with another cause; then another wait; then none.
    waits.append(Waiting("no peer sends anything", 1000.0))
    began = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:

        async def next_wait() -> None:
            await trio.sleep(2.5 * SILENT_SECONDS)
            waits.append(Waiting("no peer sends anything", time.time()))

        nursery.start_soon(next_wait)
        silent = await silence.watch()
    assert autojump_clock.current_time() - began == 3 * SILENT_SECONDS
    assert silent is not None
    assert silent.waits
    waits.append(None)
    silent = await silence.watch()
    assert silent is not None
    assert not silent.waits


async def test_of_a_resumed_guest_only_waits_for_data_are_told(autojump_clock: MockClock) -> None:
    waits: list[Waiting] = []
    silence = Silence(
        Transcript(trio.current_time), lambda: waits[0] if waits else None, resumed=True
    )
    with trio.move_on_after(10 * SILENT_SECONDS):
        await silence.watch()
    assert autojump_clock.current_time() >= 10 * SILENT_SECONDS
    waits.append(Waiting("no peer answers", time.time()))
    silent = await silence.watch()
    assert silent is not None
    assert silent.waits
    assert "no peer answers" in silent.said
