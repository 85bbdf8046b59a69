"""Replay a recorded guest's reads from a block server: a closed loop, with the guest's pauses."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.nbd_reader import NbdReader
from bench.trace import Read


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a read waited.

    Attributes:
        at: when it was issued, in seconds since the replay began.
        seconds: from then until its answer.
    """

    at: float
    seconds: float


def replay(reader: NbdReader, reads: Sequence[Read]) -> list[Wait]:
    """Issue each read once as many reads are answered as at its recording, and the recorded pause
    has passed. So parallel reads are parallel again, and a read that depended on an answer waits
    for that answer, however long it takes.

    Raises:
        BenchError, TimeoutError: as NbdReader.
    """
    start = time.monotonic()
    answered = [start]  # when so many answers were there
    asked: list[float] = []
    waits: list[Wait] = []

    def ask_what_is_due() -> float | None:
        """Seconds until the next is due; None where an answer must come before."""
        while len(asked) < len(reads) and reads[len(asked)].after < len(answered):
            read = reads[len(asked)]
            pause = answered[read.after] + read.think - time.monotonic()
            if pause > 0:
                return pause
            reader.ask(len(asked), read.offset, read.length)
            asked.append(time.monotonic())
        return None

    while len(waits) < len(reads):
        pause = ask_what_is_due()
        if len(asked) == len(waits):
            assert pause is not None, "a read waits for answers that were never requested"
            time.sleep(pause)
        elif pause is None or select.select([reader], [], [], pause)[0]:
            handle, _ = reader.answer()
            answered.append(time.monotonic())
            waits.append(Wait(asked[handle] - start, answered[-1] - asked[handle]))
    return waits
