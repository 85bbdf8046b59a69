"""Completing pieces of which some bytes are provisional, when nobody needs the time.

Provisional ranges serve readers of this node alone. So once the metadata is here, pieces are made
of those that lie side by side, and what lies between others is brought. They go when their pieces
are durable: from then on these serve others, too.

A guest that boots needs the link for itself, and may need what it reads only once: so what lies
between waits until nobody has read anything of any torrent for half a minute, unless what is here
was published, and others are about to come for it. Then little is asked for at once; no peer is
tried for it, and nobody is told to wait. Peers give whole pieces only, so they are asked for what
was published, and for nothing else: what nobody needs is not worth bytes that are here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import trio

from p2pcloopd.engine.transfer import Transfer
from p2pcloopd.engine.unless import unless

IDLE_SECONDS = 30
"""So long nobody must have read anything: boots right after one another are one."""

QUIET_SECONDS = 2
"""So long no reader must have waited between one step and the next."""

ASSEMBLE_QUIET_SECONDS = 0.1
"""The same before a piece is put together of what is here: its hash takes the processor only."""

WINDOW = 64 << 10
"""Bytes that are asked for at once, or a piece: that much a reader may find in its way."""

PATIENCE_SECONDS = 30
"""Pieces that do not come within this give way to others."""


class Completion:
    """Completes the pieces of one torrent."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._since = 0.0
        self._hurried = trio.Event()

    def hurry(self) -> None:
        """Wait no longer until nobody reads: others are about to come for it."""
        self._hurried.set()

    async def run(self) -> None:
        """Complete what is provisional, for ever."""
        while self._transfer.disk is None:
            await self._transfer.change()
        self._tidy()
        self._since = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._assemble_all)
            await self._complete_all()

    async def _assemble_all(self) -> None:
        """Make pieces of what lies side by side, once no reader waits: that takes no link."""
        transfer = self._transfer
        while True:
            changed = transfer.changed
            kept, transfer.provisional.kept = transfer.provisional.kept, []
            if not kept:
                await changed.wait()
                continue
            for part in kept:
                if sum(part) <= transfer.stored.layout.total_size:
                    for piece in transfer.stored.layout.pieces_of(*part):
                        await self._assemble(piece)

    async def _assemble(self, piece: int) -> None:
        transfer = self._transfer
        span = transfer.stored.layout.range_of(piece)
        if transfer.is_coming(piece) or transfer.provisional.gaps(*span):
            return
        await transfer.demand.quiet(ASSEMBLE_QUIET_SECONDS, trio.current_time())
        data = await transfer.provisional.read(*span)
        if data is None or transfer.is_coming(piece) or not transfer.running:
            return
        if not transfer.on_piece_brought(piece, data):
            transfer.provisional.drop(*span)  # a mirror lied, and no reader has noticed

    async def _complete_all(self) -> None:
        at = 0
        while True:
            changed = self._transfer.changed
            batch, at = self._choose(at)
            if batch:
                await self._complete(batch)
            elif at == 0:
                await changed.wait()

    def _tidy(self) -> None:
        """Forget what is durable by now, and what is part of nothing: nobody has compared it."""
        stored, provisional = self._transfer.stored, self._transfer.provisional
        for part in provisional.ranges:
            if sum(part) > stored.layout.total_size or stored.has(*part):
                provisional.drop(*part)

    def _choose(self, at: int) -> tuple[list[int], int]:
        """Missing pieces of ranges from an offset on, and where to go on; 0: anew."""
        layout, batch = self._transfer.stored.layout, dict[int, None]()
        most = WINDOW // layout.piece_length or 1
        while (part := self._transfer.provisional.next(at)) is not None:
            if sum(part) > layout.total_size:
                self._transfer.provisional.drop(*part)
                continue
            missing = (p for p in layout.pieces_of(*part) if not self._transfer.is_coming(p))
            batch.update(dict.fromkeys(missing))
            at = sum(part)
            if len(batch) >= most:
                return list(batch), at
        return list(batch), 0

    async def _complete(self, batch: Iterable[int]) -> None:
        """Ask for pieces until they are here, or it takes too long."""
        demand = self._transfer.demand
        async with demand.spare:
            if not self._hurried.is_set():
                await unless(self._hurried, partial(demand.idle, IDLE_SECONDS, self._since))
            await demand.quiet(QUIET_SECONDS, trio.current_time() - QUIET_SECONDS)
            wanted = [piece for piece in batch if not self._transfer.is_coming(piece)]
            with trio.move_on_after(PATIENCE_SECONDS):
                while not (self._hurried.is_set() or self._transfer.direct.usable()):
                    await self._transfer.change()
                with self._transfer.spare(wanted):
                    while self._any_left(wanted):
                        await self._transfer.change()

    def _any_left(self, pieces: Iterable[int]) -> bool:
        """Whether a piece is missing of which a range is provisional yet."""
        layout, provisional = self._transfer.stored.layout, self._transfer.provisional
        return any(
            not self._transfer.has(piece) and provisional.overlapping(*layout.range_of(piece))
            for piece in pieces
        )
