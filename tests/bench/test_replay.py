"""Recorded reads: from nbdkit's log, and asked for again as the guest did."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

import pytest

from bench.harness import BenchError
from bench.nbd_reader import NbdReader
from bench.replay import replay
from bench.trace import Read, parse_log

LOG = """\
2026-11-25 20:48:41.409797 Ready thread_model=3
2026-11-25 20:48:41.422882 connection=1 Connect export="" tls=0 size=0x25800000
2026-11-25 20:48:43.000000 connection=1 Read id=1 offset=0x0 count=0x1000 ...
2026-11-25 20:48:43.000100 connection=1 ...Read id=1 return=0
2026-11-25 20:48:43.000600 connection=1 Read id=2 offset=0x1000 count=0x1000 ...
2026-11-25 20:48:43.000700 connection=1 Read id=3 offset=0x20000 count=0x400 ...
2026-11-25 20:48:43.000800 connection=1 Write id=4 offset=0x0 count=0x1000 fua=0 ...
2026-11-25 20:48:43.000900 connection=1 ...Write id=4 return=0
2026-11-25 20:48:43.001000 connection=1 ...Read id=3 return=0
2026-11-25 20:48:43.001500 connection=1 Read id=5 offset=0x2000 count=0x1000 ...
"""


def test_a_log_tells_what_was_read_after_which_answers() -> None:
    reads = parse_log(LOG)
    assert [(read.offset, read.length, read.after) for read in reads] == [
        (0, 4096, 0),
        (4096, 4096, 1),
        (0x20000, 1024, 1),
        (8192, 4096, 2),
    ]
    assert [read.think for read in reads] == pytest.approx([0, 0.0005, 0.0006, 0.0005])


def test_a_log_without_reads_is_refused() -> None:
    with pytest.raises(BenchError, match="no reads"):
        parse_log(LOG[:100])


class Disk:
    """Answers reads, the newest first, and notes what was asked for and answered, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._outstanding: list[int] = []
        self._readable, self._writable = os.pipe()

    def fileno(self) -> int:
        return self._readable

    def ask(self, handle: int, offset: int, length: int) -> None:
        self.events.append(f"ask {offset} {length}")
        self._outstanding.append(handle)
        os.write(self._writable, b"!")

    def answer(self) -> tuple[int, bytes]:
        os.read(self._readable, 1)
        handle = self._outstanding.pop()
        self.events.append(f"answer {handle}")
        return handle, b""

    def close(self) -> None:
        os.close(self._readable)
        os.close(self._writable)


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.close()


def test_reads_are_asked_for_as_they_were_recorded(disk: Disk) -> None:
    reads = [Read(0, 1), Read(1, 1, after=1), Read(2, 1, after=1), Read(3, 1, after=2, think=0.001)]
    waits = replay(cast(NbdReader, disk), reads)
    assert disk.events[:5] == ["ask 0 1", "answer 0", "ask 1 1", "ask 2 1", "answer 2"]
    assert sorted(disk.events[5:]) == ["answer 1", "answer 3", "ask 3 1"]
    assert len(waits) == 4


def test_a_pause_is_kept(disk: Disk) -> None:
    [first, second] = replay(cast(NbdReader, disk), [Read(0, 1), Read(1, 1, after=1, think=0.02)])
    assert second.at - (first.at + first.seconds) >= 0.02
