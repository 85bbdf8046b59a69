"""Counts the bytes received for a torrent, and how many of them were here already.

A byte is here when it is durable, arrived, provisional (provisional.py), or in a block of a piece
that libtorrent has in part. docs/formats/control.md has the exact words.
"""

from __future__ import annotations

from collections.abc import Callable

BLOCK = 1 << 14
"""Bytes of a block (BEP 3), in which libtorrent asks peers."""


class Received:
    """Counts for one torrent, since p2pcloopd started.

    Attributes:
        bytes: of content that came, from wherever.
        again: of them, those that were here, and that there was no reason to ask for again.
        hedged: of them, those that were here because a second source was asked for a piece, when
            the first had been silent.
    """

    def __init__(self, here: Callable[[int, int], int]) -> None:
        """`here` tells how many bytes of a range are here."""
        self.bytes = 0
        self.again = 0
        self.hedged = 0
        self._here = here
        self._blocks: dict[int, set[int]] = {}
        self._twice: set[int] = set()
        self._redundant = 0

    def hedge(self, piece: int) -> None:
        """Note that a second source is asked for a piece."""
        self._twice.add(piece)

    def on_range(self, offset: int, length: int, piece_length: int = 0) -> None:
        """Count bytes that are about to be kept.

        Args:
            piece_length: bytes of a piece, 0 where that is not known yet.
        """
        self.bytes += length
        if not piece_length or not (self._blocks or self._twice):
            self.again += self._here(offset, length)
            return
        end = offset + length
        for piece in range(offset // piece_length, (end - 1) // piece_length + 1):
            first, last = piece * piece_length, (piece + 1) * piece_length
            first, last = max(first, offset), min(last, end)
            in_blocks = self._in_blocks(piece, piece_length, first, last)
            self._record(piece, max(in_blocks, self._here(first, last - first)))

    def on_block(self, piece: int, block: int, offset: int, length: int) -> None:
        """Count a block that a peer sent, which begins at `offset` of the content."""
        self.bytes += length
        self._record(piece, self._here(offset, length))
        self._blocks.setdefault(piece, set()).add(block)

    def on_piece(self, piece: int) -> None:
        """Note that libtorrent has all of a piece, or none of it any more."""
        self._blocks.pop(piece, None)

    def on_left(self) -> None:
        """Note that libtorrent forgot its blocks and counts anew."""
        self._blocks.clear()
        self._redundant = 0

    def on_metadata(self, redundant: int) -> None:
        """Note libtorrent's count when the metadata is here: it counts that, too."""
        self._redundant = redundant

    def on_redundant(self, total: int) -> None:
        """Note libtorrent's count of bytes that it had and that came again."""
        fresh, self._redundant = total - self._redundant, total
        self.bytes += fresh
        if self._twice:
            self.hedged += fresh
        else:
            self.again += fresh

    def blocks(self, piece: int) -> bool:
        """Whether libtorrent has a part of a piece."""
        return piece in self._blocks

    def _in_blocks(self, piece: int, piece_length: int, first: int, last: int) -> int:
        start = piece * piece_length
        begins = (start + block * BLOCK for block in self._blocks.get(piece, ()))
        return sum(max(0, min(last, begin + BLOCK) - max(first, begin)) for begin in begins)

    def _record(self, piece: int, known: int) -> None:
        if piece in self._twice:
            self.hedged += known
        else:
            self.again += known
