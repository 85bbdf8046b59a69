"""Guests that work out of sight: one that was cut off has not done its work."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from p2pcloop.errors import GuestError
from p2pcloopd.guest.result import GuestResult
from p2pcloopd.guest.running import Interrupt
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.unseen import guests, importing


async def test_one_that_is_to_end_does_not_power_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-Alt-Del it would end as one does that is done."""

    async def interrupted(_: GuestSpec, *, interrupt: Interrupt | None = None) -> GuestResult:
        powers_off = interrupt is None or interrupt(signal.SIGINT)
        return GuestResult(0, "poweroff" if powers_off else "killed", None, 1.0, None)

    monkeypatch.setattr(guests, "run_guest", interrupted)
    with pytest.raises(GuestError, match=r"ended early \(killed\)"):
        await guests._work(GuestSpec(Path("/disk")), [])


@pytest.mark.parametrize("said", [b"", b"\xff\xfe 1", b"files x", b"files 1 directories", b"f 1"])
def test_an_answer_that_says_nothing_is_an_error(said: bytes) -> None:
    with pytest.raises(GuestError, match="has not said"):
        importing.parse_answer(said.ljust(4096, b"\0"))
