"""Pieces that a reader waits for, asked of a server by their exact range: one round trip.

BitTorrent takes three where a peer was wanted nothing of: to say that something is wanted, to be
unchoked, to ask. What comes is compared with its hash, given to libtorrent like any piece, and so
passed on. A server that does not answer, or not soon, costs nothing: the swarm is asked as well.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import trio

from p2pcloopd.engine.peers import Peers
from p2pcloopd.engine.transfer import Transfer

Ask = Callable[[int, int], Awaitable[bytes | None]]
"""Gets bytes of the content, offset and length, not verified; None where it cannot."""

HEDGE_SECONDS = 1.0
"""The swarm is asked as well for what has not come by then."""

PAUSE_SECONDS = 10.0
"""So long only the swarm is asked once a server did not answer, or wrongly."""

MAX_RANGE = 1 << 20

MISS = 32 << 10
"""Bytes that a guest waits for, as a rule, rounded up."""


class Direct:
    """The ranges that are asked for of one torrent.

    Attributes:
        ask: gets them; None where nobody can be asked.
    """

    def __init__(self, transfer: Transfer, peers: Peers) -> None:
        self.ask: Ask | None = None
        self._transfer = transfer
        self._peers = peers
        self._not_before = -math.inf
        self._wanted, self._to_bring = trio.open_memory_channel[list[int]](math.inf)

    def ready(self) -> bool:
        """Whether a server is asked. In a crowd the swarm is: what one got, others have from it;
        but for a server that is not asked by BitTorrent."""
        return self._usable() and (self._transfer.apart or not self._transfer.crowd)

    def _usable(self) -> bool:
        return self.ask is not None and trio.current_time() >= self._not_before

    def suits(self, offset: int, length: int) -> bool:
        """Whether a range had better be asked for as it is, and not by its pieces: the metadata is
        known, somebody can be asked, none of its pieces is here or on its way, and no crowd is to
        have them: one piece for all of it crosses a link once, but a large one takes longer."""
        disk = self._transfer.disk
        if disk is None or offset + length > disk.layout.total_size:
            return False
        crowd = self._transfer.crowd
        if not self._usable() or (crowd and disk.layout.piece_length <= MISS * (crowd + 1)):
            return False
        pieces = disk.layout.pieces_of(offset, length)
        return not any(self._transfer.has(p) or p in self._transfer.pieces for p in pieces)

    def take(self, pieces: list[int]) -> None:
        """Bring pieces that a reader waits for; where that fails, the swarm does."""
        self._wanted.send_nowait(pieces)

    async def run(self) -> None:
        """Bring what was taken, for ever."""
        async with trio.open_nursery() as nursery:
            async for pieces in self._to_bring:
                for run in _runs(pieces, MAX_RANGE // self._transfer.stored.layout.piece_length):
                    nursery.start_soon(self._bring, run)

    async def _bring(self, run: range) -> None:
        async with trio.open_nursery() as nursery:
            failed = trio.Event()
            nursery.start_soon(self._hedge, run, failed)
            if await self._ask(run):
                nursery.cancel_scope.cancel()
            else:
                self.pause()
                failed.set()

    async def _hedge(self, run: range, failed: trio.Event) -> None:
        """Ask the swarm for what does not come, and have peers tried until it is here.

        Not before: libtorrent gives up peers of a torrent that wants nothing when they are
        connected to.
        """
        with trio.move_on_after(HEDGE_SECONDS):
            await failed.wait()
        self._transfer.ask_swarm(self._left(run))
        with self._peers.needed():
            while self._left(run):
                await self._transfer.change()

    def _left(self, run: range) -> list[int]:
        return [piece for piece in run if piece in self._transfer.pieces]

    async def complete(self, pieces: Sequence[int], known: Mapping[int, bytes]) -> bool:
        """Bring pieces of which some bytes are known, by offset: only the others are asked for.

        Returns:
            Whether all came, and were right.
        """
        most = MAX_RANGE // self._transfer.stored.layout.piece_length
        for run in _runs(pieces, most):
            if not await self._ask(run, known):
                return False
        return True

    async def _ask(self, run: range, known: Mapping[int, bytes] = MappingProxyType({})) -> bool:
        """Whether all of a run came, and was right."""
        layout = self._transfer.stored.layout
        start = run.start * layout.piece_length
        data = bytearray(min(run.stop * layout.piece_length, layout.total_size) - start)
        for offset, part in known.items():
            _put(data, offset - start, part)
        for gap in _gaps(start, start + len(data), known):
            came = None if self.ask is None else await self.ask(gap.start, len(gap))
            if came is None or len(came) != len(gap):
                return False
            self._peers.on_bytes(len(came))
            _put(data, gap.start - start, came)
        return self._take(run, bytes(data))

    def _take(self, run: range, data: bytes) -> bool:
        """Hand over the pieces of a run, up to the first that is wrong; whether none is."""
        size = self._transfer.stored.layout.piece_length
        for piece in run:
            part = data[(piece - run.start) * size :][:size]
            if not self._transfer.on_piece_brought(piece, part):
                return False
        return True

    def pause(self) -> None:
        """Ask the swarm alone for a while: a server did not answer, or wrongly."""
        self._not_before = trio.current_time() + PAUSE_SECONDS


def _put(data: bytearray, at: int, part: bytes) -> None:
    """Copy what of a part lies inside."""
    if at < 0:
        at, part = 0, part[-at:]
    part = part[: max(0, len(data) - at)]
    data[at : at + len(part)] = part


def _gaps(start: int, end: int, known: Mapping[int, bytes]) -> Iterator[range]:
    """What lies between parts."""
    for offset in sorted(known):
        if start < min(offset, end):
            yield range(start, min(offset, end))
        start = max(start, offset + len(known[offset]))
    if start < end:
        yield range(start, end)


def _runs(pieces: Sequence[int], most: int) -> Iterator[range]:
    """Pieces as runs that are side by side, of at most so many each."""
    start = 0
    ordered = sorted(pieces)
    for at in range(1, len(ordered) + 1):
        ended = at == len(ordered) or ordered[at] != ordered[at - 1] + 1
        if ended or at - start >= most:
            yield range(ordered[start], ordered[at - 1] + 1)
            start = at
