"""A slow line: its rate, its round-trip delay, and the settings of tc-tbf(8) that follow."""

from __future__ import annotations

import re
from dataclasses import dataclass

KILOBYTE = 1000
FRAME = 1514
"""Bytes of a full Ethernet frame as tbf and the interfaces count it: 1500 and the header's 14."""

_TEXT = re.compile(r"(\d+(?:\.\d+)?)(mbit)?(?:\+(\d+(?:\.\d+)?)ms)?", re.IGNORECASE)
_BURST_SECONDS = 0.002
_BURST_FRAMES = 4
_QUEUE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Link:
    """A host's way to the others, the same in both directions.

    Attributes:
        rate: bytes a second, Ethernet headers included.
        delay: seconds of a round trip between the two sides of the network, beyond what the
            machine itself takes.
    """

    rate: float
    delay: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Link:
        """Read `1507` (KB/s, of 1000 bytes), `25Mbit`, or either with `+20ms`.

        Raises:
            ValueError: it is none of these, or outside of 10 KB/s to 1 GB/s and 1 s.
        """
        match = _TEXT.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text!r} is no link: write 1507 (KB/s), 25Mbit or 25Mbit+20ms")
        number, mbit, delay = match.groups()
        rate = float(number) * (1e6 / 8 if mbit else KILOBYTE)
        link = cls(rate, float(delay or 0) / 1000)
        if not 1e4 <= link.rate <= 1e9 or link.delay > 1:
            raise ValueError(f"{text!r}: links have 10 KB/s to 1 GB/s, and at most 1000 ms")
        return link

    def __str__(self) -> str:
        text = f"{self.rate / KILOBYTE:.6g} KB/s"
        return text + (f", {self.delay * 1000:g} ms" if self.delay else "")

    @property
    def burst(self) -> int:
        """Bytes that tbf lets pass at once: 2 ms of the rate, at least 4 frames.

        A boot is thousands of times as much, so this hides nothing of the rate. With less, tbf's
        timer would have to be exact to some 100 µs to reach the rate at all.
        """
        return max(_BURST_FRAMES * FRAME, int(self.rate * _BURST_SECONDS))

    @property
    def queue(self) -> float:
        """Seconds that a packet may wait in tbf before it is dropped: 100 ms and the delay.

        TCP needs a queue of one round trip to fill a link. Much more would be bufferbloat, and
        every demand read would wait behind it.
        """
        return _QUEUE_SECONDS + self.delay
