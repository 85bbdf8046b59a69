"""Who sent each piece of a torrent, for people: a byte a piece, since p2pcloopd started."""

from __future__ import annotations

from collections.abc import Hashable

MAX_SENDERS = 254
"""Senders that are told apart; all later ones are one."""


class Senders:
    """The sender of each piece. Of a piece in several parts it is who sent the last one.

    It takes a byte for each piece up to the last that came, so at most 256 KiB.

    Attributes:
        of: for each piece 0 where none is known, else the place of its sender in `all`, counted
            from 1; `MAX_SENDERS` + 1 for senders that are not told apart. It may be shorter.
        all: what senders were noted by.
    """

    def __init__(self) -> None:
        self.of = bytearray()
        self.all: list[Hashable] = []
        self._numbers: dict[Hashable, int] = {}

    def note(self, first: int, last: int, sender: Hashable) -> None:
        """Note who sent bytes of pieces, both counted."""
        number = self._numbers.get(sender) or self._add(sender)
        if last >= len(self.of):
            self.of.extend(bytes(last + 1 - len(self.of)))
        if first == last:
            self.of[first] = number
        else:
            self.of[first : last + 1] = bytes([number]) * (last + 1 - first)

    def _add(self, sender: Hashable) -> int:
        if len(self.all) == MAX_SENDERS:
            return MAX_SENDERS + 1
        self.all.append(sender)
        number = self._numbers[sender] = len(self.all)
        return number
