"""Parts of a torrent that a reader was given by their exact range, and the pieces round them.

A part (store/parts.py) serves readers of this node and nobody else: peers are given verified
pieces only, and so is who asks over HTTP. So once the metadata is here, what lies between the parts
is brought, and a part goes when its pieces are durable: by then all that serves pieces serves them.

It takes time that nobody needs: while no reader of any torrent has waited for a while, little at
once, from whoever is at hand; no peer is tried for it, and nobody is told to wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import trio

from p2pcloop.store.parts import MAX_BYTES, Parts, Range
from p2pcloopd.engine.direct import Direct
from p2pcloopd.engine.transfer import Transfer
from p2pcloopd.engine.unless import unless

QUIET_SECONDS = 2
"""So long no reader must have waited."""

WRITE_QUIET_SECONDS = 0.25
WRITE_SECONDS = 5
WRITE_BYTES = 4 << 20
"""Parts are written once no reader has waited for so long, or so long after the first, or once they
are so many: each is a file, which takes time that a guest may wait for."""

WINDOW = 64 << 10
"""Bytes that are asked for at once, or a piece: that much a reader may find in its way."""

PATIENCE_SECONDS = 30
"""Pieces that do not come within this give way to others."""


class EarlyParts:
    """The parts of one torrent."""

    def __init__(self, transfer: Transfer, direct: Direct, directory: Path) -> None:
        """`directory` is the torrent's in the store."""
        self._transfer = transfer
        self._direct = direct
        self._parts = Parts(directory)
        self._fresh: dict[Range, bytes] = {}
        self._kept = trio.Event()
        self._plenty = trio.Event()
        self._written = trio.Event()

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return self._parts.size + sum(length for _, length in self._fresh)

    @property
    def room(self) -> int:
        """Bytes of parts that would be kept yet."""
        return MAX_BYTES - self.size

    async def read(self, offset: int, length: int) -> bytes | None:
        """The part of just this range, or None."""
        if (offset, length) in self._fresh:
            return self._fresh[offset, length]
        if not self._parts.has(offset, length):
            return None
        return await trio.to_thread.run_sync(self._parts.read, offset, length)

    def keep(self, offset: int, data: bytes) -> None:
        """Keep a part, where there is room; it is written to the disk soon."""
        if len(data) <= self.room:
            self._fresh[offset, len(data)] = data
            self._kept.set()
            if sum(length for _, length in self._fresh) >= WRITE_BYTES:
                self._plenty.set()

    async def drop(self, offset: int, length: int) -> None:
        """Forget a part."""
        self._fresh.pop((offset, length), None)
        await trio.to_thread.run_sync(self._parts.drop, offset, length)

    async def flush(self) -> None:
        """Have written what is kept."""
        while self._fresh:
            self._plenty.set()
            await self._written.wait()

    def forget(self) -> None:
        """Write no more: the torrent is about to be removed."""
        self._fresh.clear()

    async def clear(self) -> None:
        """Forget all parts."""
        self._fresh.clear()
        await trio.to_thread.run_sync(self._parts.clear)

    async def run(self) -> None:
        """Write what is kept, and bring the pieces round it once the metadata is here, for ever."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                while self._transfer.disk is None:
                    await self._transfer.change()
                while True:
                    written = self._written
                    await self._complete()
                    await written.wait()
        finally:
            if self._fresh:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._parts.keep, self._fresh)

    async def _write(self) -> None:
        while True:
            await self._kept.wait()
            self._kept = trio.Event()
            with trio.move_on_after(WRITE_SECONDS):
                await unless(self._plenty, self._quiet)
            self._plenty = trio.Event()
            fresh = self._fresh.copy()
            await trio.to_thread.run_sync(self._parts.keep, fresh)
            for part in fresh:
                if self._fresh.pop(part, None) is None:
                    await self.drop(*part)  # as it was while it was written
            self._written.set()
            self._written = trio.Event()

    async def _quiet(self) -> None:
        await self._transfer.demand.quiet(WRITE_QUIET_SECONDS, trio.current_time())

    async def _complete(self) -> None:
        demand, begun, last = self._transfer.demand, trio.current_time(), -1
        while left := self._parts.ranges:
            if done := self._needless(left):
                for each in done:
                    await self.drop(*each)
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
                if not await self._fill_up(batch, left):
                    await self._ask(batch, left)

    async def _fill_up(self, batch: list[int], parts: list[Range]) -> bool:
        """Bring what lies between parts, where somebody can be asked for just that."""
        if not self._direct.ready():
            return False
        layout = self._transfer.stored.layout
        wanted = [part for part in parts if not set(batch).isdisjoint(layout.pieces_of(*part))]
        known = {part[0]: await self.read(*part) or b"" for part in wanted}
        with trio.move_on_after(PATIENCE_SECONDS):
            if await self._direct.complete(batch, known):
                while not all(map(self._transfer.has, batch)):  # libtorrent is about to say so
                    await self._transfer.change()
                return True
        return False

    async def _ask(self, batch: list[int], left: list[Range]) -> None:
        """Ask for pieces until they are here, parts need none any more, or it takes too long."""
        with self._transfer.spare(batch), trio.move_on_after(PATIENCE_SECONDS):
            while not (all(map(self._transfer.has, batch)) or self._needless(left)):
                await self._transfer.change()

    def _needless(self, ranges: Iterable[Range]) -> list[Range]:
        """Those of parts whose pieces are durable, or that are parts of nothing."""
        stored = self._transfer.stored
        size = stored.layout.total_size
        return [each for each in ranges if sum(each) > size or stored.has(*each)]
