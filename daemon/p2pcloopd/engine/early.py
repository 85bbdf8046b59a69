"""Parts of a torrent that were read before its metadata was here, and the pieces round them.

A part (store/parts.py) serves readers of this node and nobody else: peers are given verified
pieces only, and so is who asks over HTTP. So once the metadata is here, the pieces round the parts
are brought, and a part goes when they are durable: by then all that serves pieces serves them.
These few bytes cross twice. To serve the parts themselves would save that, but over HTTP alone,
with a second kind of file whose content this node cannot vouch for.

It takes time that nobody needs: while no reader of any torrent has waited for a while, little at
once, from whoever is at hand; no peer is tried for it, and nobody is told to wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import trio

from p2pcloop.store.parts import Parts
from p2pcloopd.engine.transfer import Transfer

QUIET_SECONDS = 2
"""So long no reader must have waited."""

WINDOW = 64 << 10
"""Bytes that are asked for at once, or a piece: that much a reader may find in its way."""

PATIENCE_SECONDS = 30
"""Pieces that do not come within this give way to others."""

_Range = tuple[int, int]


class EarlyParts:
    """The parts of one torrent."""

    def __init__(self, transfer: Transfer, directory: Path) -> None:
        """`directory` is the torrent's in the store."""
        self._transfer = transfer
        self._parts = Parts(directory)
        self._kept = trio.Event()

    async def read(self, offset: int, length: int) -> bytes | None:
        """See `Parts.read`."""
        return await trio.to_thread.run_sync(self._parts.read, offset, length)

    async def keep(self, offset: int, data: bytes) -> None:
        """See `Parts.keep`."""
        await trio.to_thread.run_sync(self._parts.keep, offset, data)
        self._kept.set()

    async def drop(self, offset: int, length: int) -> None:
        """See `Parts.drop`."""
        await trio.to_thread.run_sync(self._parts.drop, offset, length)

    async def run(self) -> None:
        """Bring the pieces round the parts once the metadata is here, for ever."""
        while self._transfer.disk is None:
            await self._transfer.change()
        while True:
            self._kept = trio.Event()
            await self._complete()
            await self._kept.wait()

    async def _complete(self) -> None:
        left = await trio.to_thread.run_sync(self._parts.ranges)
        demand, begun, last = self._transfer.demand, trio.current_time(), -1
        while left:
            if done := self._needless(left):
                for each in done:
                    await self.drop(*each)
                    left.remove(each)
                continue
            layout = self._transfer.stored.layout
            around = {piece for each in left for piece in layout.pieces_of(*each)}
            missing = sorted(piece for piece in around if not self._transfer.has(piece))
            if not missing:
                await self._transfer.change()
                continue
            # Those behind the last that were asked for: what nobody has keeps no other waiting.
            missing = [piece for piece in missing if piece > last] or missing
            batch = missing[: WINDOW // layout.piece_length or 1]
            last = batch[-1]
            async with demand.spare:
                await demand.quiet(QUIET_SECONDS, begun)
                await self._ask(batch, left)

    async def _ask(self, batch: list[int], left: list[_Range]) -> None:
        """Ask for pieces until they are here, parts need none any more, or it takes too long."""
        with self._transfer.spare(batch), trio.move_on_after(PATIENCE_SECONDS):
            while not (all(map(self._transfer.has, batch)) or self._needless(left)):
                await self._transfer.change()

    def _needless(self, ranges: Iterable[_Range]) -> list[_Range]:
        """Those of parts whose pieces are durable, or that are parts of nothing."""
        stored = self._transfer.stored
        size = stored.layout.total_size
        return [each for each in ranges if sum(each) > size or stored.has(*each)]
