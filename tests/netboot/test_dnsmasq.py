"""dnsmasq: its end is not the end of the disks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pcloop.errors import GuestError, P2pcloopError
from p2pcloopd.netboot import dnsmasq
from p2pcloopd.netboot.dnsmasq import MAX_PAUSE, serve_dnsmasq


class Program:
    """Runs for so many seconds each time; does not start where they are 0."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.starts: list[float] = []

    async def __call__(
        self, settings: str, tftp: Mapping[str, Path], started: Callable[[], None]
    ) -> P2pcloopError:
        del settings, tftp
        self.starts.append(trio.current_time())
        seconds = self.seconds.pop(0)
        if seconds:
            started()
            await trio.sleep(seconds)
        return GuestError("dnsmasq does not serve: killed")


async def test_it_is_started_again_with_a_growing_pause(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    program = Program(10, 0, 0, 1000, 10, float("inf"))
    monkeypatch.setattr(dnsmasq, "run_dnsmasq", program)
    said: list[str] = []
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_dnsmasq, "", {}, said.append)
        await trio.sleep(2000)
        nursery.cancel_scope.cancel()
    at = [round(start - begun) for start in program.starts]
    assert at == [0, 11, 13, 17, 1018, 1030]
    assert "Next try in 1 s: dnsmasq does not serve" in said[0]
    assert "machines can start again" in said
    assert MAX_PAUSE == 60


async def test_one_that_does_not_start_at_first_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dnsmasq, "run_dnsmasq", Program(0))
    with pytest.raises(GuestError, match="does not serve"):
        await serve_dnsmasq("", {}, lambda _: None)
