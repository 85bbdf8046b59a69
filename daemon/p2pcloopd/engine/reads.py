"""Reads of a torrent's content: from memory what came lately, from its files what is durable, else
from the swarm.

Room is given back only when no read of the files is under way that began while the bits still said
that all was there: see `unread`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import trio

from p2pcloopd.engine.transfer import Transfer

_Arguments = TypeVarTuple("_Arguments")


class Reads:
    """The reads of one torrent.

    Args:
        mend: called before anything is fetched: raises or mends what the disk refused.
    """

    def __init__(self, transfer: Transfer, mend: Callable[[], Awaitable[None]]) -> None:
        self._transfer = transfer
        self._mend = mend
        self._under_way: set[trio.Event] = set()

    async def read(
        self, offset: int, length: int, pieces: range, missing: list[int], *, ahead: bool = False
    ) -> bytes:
        """Read a range, of whose pieces some were missing a moment ago. Errors: `Torrent.read`."""
        stored = self._transfer.stored
        start = offset - pieces[0] * stored.layout.piece_length
        recent = self._transfer.pieces.recent(pieces)
        if recent is not None:
            await trio.lowlevel.checkpoint()
            return b"".join(recent)[start : start + length]
        if not missing:
            return await self._from_files(stored.content.read, offset, length)
        fetched = await self.fetch(missing, keep=True, ahead=ahead)
        data = [fetched.get(piece) or await self._read_piece(piece) for piece in pieces]
        return b"".join(data)[start : start + length]

    async def fetch(
        self, missing: list[int], *, keep: bool, ahead: bool = False
    ) -> dict[int, bytes | None]:
        """Wait for pieces, as `Transfer.get`."""
        await self._mend()
        return await self._transfer.get(missing, keep=keep, ahead=ahead)

    async def unread(self) -> None:
        """Wait until the reads of files that are under way now have ended."""
        for done in tuple(self._under_way):
            await done.wait()

    async def _read_piece(self, piece: int) -> bytes:
        """Read a piece that was here a moment ago; it may have gone since."""
        while True:
            stored = self._transfer.stored
            if stored.have.has(piece, piece):
                return await self._from_files(stored.content.read_piece, piece)
            data = (await self.fetch([piece], keep=True))[piece]
            if data is not None:
                return data

    async def _from_files(
        self, read: Callable[[*_Arguments], bytes], *arguments: *_Arguments
    ) -> bytes:
        """Read in a worker thread. The bits were looked at since anything was awaited last."""
        done = trio.Event()
        self._under_way.add(done)
        try:
            return await trio.to_thread.run_sync(read, *arguments)
        finally:
            self._under_way.remove(done)
            done.set()
