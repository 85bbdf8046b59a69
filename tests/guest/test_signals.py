"""Signals to this process, counted."""

from __future__ import annotations

import os
import signal

from p2pcloopd.guest.console.signals import counted_signals


async def test_each_arrival_counts_and_what_was_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with counted_signals(signal.SIGUSR1, signal.SIGUSR2) as signals:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        came = [await signals.receive() for _ in range(3)]
        assert came == [signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2]
        for _ in range(1000):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert await signals.receive() == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before
