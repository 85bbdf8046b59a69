"""Signals that are counted: trio's own receiver joins equal ones that arrive close together."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import trio

_WAITING = 16
"""Signals that may wait to be received; more of them say nothing new."""


@contextmanager
def counted_signals(*numbers: signal.Signals) -> Iterator[trio.MemoryReceiveChannel[int]]:
    """Catch signals for as long as the block lasts, each arrival by itself.

    Two Ctrl-C mean more than one, however quickly they follow: the second one ends the guest. Only
    equal signals that the kernel joins, before Python has seen them, count as one. This must be
    called from the main thread.
    """
    send, receive = trio.open_memory_channel[int](_WAITING)
    token = trio.lowlevel.current_trio_token()

    def keep(number: int) -> None:
        with suppress(trio.WouldBlock, trio.ClosedResourceError):
            send.send_nowait(number)

    def handle(number: int, _frame: FrameType | None) -> None:
        token.run_sync_soon(keep, number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        with send, receive:
            yield receive
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
