"""Pieces that are asked of a server by their exact range: one round trip.

BitTorrent takes three where a peer was wanted nothing of: to say that something is wanted, to be
unchoked, to ask. So what a reader waits for comes this way; and the rest of pieces of which some
bytes are provisional, since BitTorrent has only whole ones. What comes is compared with its hash,
given to libtorrent like any piece, and so passed on. A server that does not answer costs nothing:
the swarm is asked as well.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import trio

from p2pcloopd.engine.peers import Peers
from p2pcloopd.engine.transfer import Transfer

Ask = Callable[[int, int], Awaitable[bytes | None]]
"""Gets bytes of the content, offset and length, not verified; None where it cannot."""

HEDGE_SECONDS = 1.0
"""The swarm is asked as well once nothing at all has come for so long,"""

HEDGE_MOST_SECONDS = 10.0
"""or a run is not here after so long."""

PAUSE_SECONDS = 10.0
"""So long only the swarm is asked once a server did not answer, or wrongly."""

MAX_RANGE = 1 << 20

AT_ONCE = 8
"""Runs that nobody waits for and that are asked for at once: each takes a round trip."""

MISS = 32 << 10
"""Bytes that a guest waits for, as a rule, rounded up."""


class Direct:
    """The ranges that are asked for of one torrent.

    Attributes:
        ask: gets them; None where nobody can be asked.
        heard: a number that grows while bytes come from servers.
    """

    def __init__(self, transfer: Transfer, peers: Peers) -> None:
        self.ask: Ask | None = None
        self.heard: Callable[[], int] = lambda: 0
        self._transfer = transfer
        self._peers = peers
        self._not_before = -math.inf
        self._taken: set[int] = set()
        self._begun: set[int] = set()
        self._unhurried = trio.CapacityLimiter(AT_ONCE)
        self._wanted, self._to_bring = trio.open_memory_channel[list[int]](math.inf)

    def ready(self) -> bool:
        """Whether a server is asked. In a crowd the swarm is: what one got, others have from it;
        but for a server that is not asked by BitTorrent."""
        return self.usable() and (self._transfer.apart or not self._transfer.crowd)

    def usable(self) -> bool:
        """Whether somebody can be asked at all."""
        return self.ask is not None and trio.current_time() >= self._not_before

    def suits(self, offset: int, length: int) -> bool:
        """Whether a range had better be asked for as it is, and not by its pieces: the metadata is
        known, somebody can be asked, none of its pieces is here or on its way, and no crowd is to
        have them: one piece for all of it crosses a link once, but a large one takes longer."""
        disk = self._transfer.disk
        if disk is None or offset + length > disk.layout.total_size:
            return False
        crowd = self._transfer.crowd
        if not self.usable() or (crowd and disk.layout.piece_length <= MISS * (crowd + 1)):
            return False
        pieces = disk.layout.pieces_of(offset, length)
        if any(map(self._transfer.is_coming, pieces)):
            return False
        return not self._transfer.under_way(pieces)

    def brings(self, piece: int) -> bool:
        """Whether a piece is being brought."""
        return piece in self._taken

    def take(self, pieces: Iterable[int]) -> None:
        """Bring pieces; where that fails, the swarm does what is wanted of them."""
        urgent = self._transfer.pieces.urgent
        fresh = [
            piece
            for piece in pieces
            if piece not in self._taken or (urgent(piece) and piece not in self._begun)
        ]
        if fresh:
            self._taken.update(fresh)
            self._wanted.send_nowait(fresh)

    async def run(self) -> None:
        """Bring what was taken, for ever."""
        async with trio.open_nursery() as nursery:
            async for pieces in self._to_bring:
                for run in self._runs(pieces):
                    nursery.start_soon(self._bring, run)

    def _runs(self, pieces: Iterable[int]) -> Iterator[range]:
        return _runs(list(pieces), MAX_RANGE // self._transfer.stored.layout.piece_length)

    async def _bring(self, run: range) -> None:
        hurried = any(map(self._transfer.pieces.urgent, run))
        failed: list[int] = []
        async with nullcontext() if hurried else self._unhurried:
            for part in self._runs(filter(self._is_left, run)):
                self._begun.update(part)
                try:
                    if not await self._try(part):
                        failed += part
                finally:
                    self._begun.difference_update(part)
                    self._taken.difference_update(part)
        if failed:
            self._transfer.ask_swarm(failed)
            await self._wait_for_swarm(failed)

    def _is_left(self, piece: int) -> bool:
        if piece not in self._begun and not self._transfer.is_coming(piece):
            return True
        self._taken.discard(piece)
        return False

    async def _try(self, run: range) -> bool:
        """Whether a run came by its exact bytes; while they do not come the swarm is asked, too."""
        if not self.usable():
            return False
        await self._wait_for_ranges(run)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hedge, run)
            came = await self._ask(run)
            nursery.cancel_scope.cancel()
        if not came:
            self.pause()
        return came

    async def _wait_for_ranges(self, run: range) -> None:
        """Wait for those of a run's bytes that are on their way by themselves."""
        layout = self._transfer.stored.layout
        start, end = run.start * layout.piece_length, sum(layout.range_of(run[-1]))
        while (coming := self._transfer.provisional.claimed(start, end - start)) is not None:
            await coming.wait()

    async def _hedge(self, run: range) -> None:
        """Ask the swarm, too, once nothing at all has come for a while, or it takes long."""
        heard = -1
        with trio.move_on_after(HEDGE_MOST_SECONDS):
            while heard != (heard := self.heard()):  # noqa: ASYNC110  a pause is what is meant
                await trio.sleep(HEDGE_SECONDS)
        left = [piece for piece in run if not self._transfer.is_coming(piece)]
        for piece in left:
            self._transfer.received.hedge(piece)
        self._transfer.ask_swarm(left)
        await self._wait_for_swarm(left)

    async def _wait_for_swarm(self, pieces: Sequence[int]) -> None:
        """Have peers tried until no reader waits for these pieces any more.

        Not before they are asked for: libtorrent gives up peers of a torrent that wants nothing
        when they are connected to.
        """

        def awaited() -> bool:
            return any(piece in self._transfer.pieces for piece in pieces)

        if awaited():
            with self._peers.needed():
                while awaited():
                    await self._transfer.change()

    async def _ask(self, run: range) -> bool:
        """Whether all of a run came, and was right. What is provisional of it is not asked for."""
        provisional, layout = self._transfer.provisional, self._transfer.stored.layout
        start, end = run.start * layout.piece_length, sum(layout.range_of(run[-1]))
        known = {}
        for offset, length in provisional.overlapping(start, end - start):
            part = await provisional.read(offset, length)
            if part is not None:
                known[offset] = part
        gaps = [range(offset, offset + length) for offset, length in _gaps(start, end, known)]
        came = await self._get(gaps)
        if came is None:
            return False
        if self._take(run, _joined(start, end, known | came)):
            return True
        if not known:
            return False
        # What a mirror gave a reader may be wrong: it is asked for anew, and the rest is not.
        provisional.drop(start, end - start)
        parts = [range(offset, offset + length) for offset, length in _gaps(start, end, came)]
        anew = await self._get(parts)
        return anew is not None and self._take(run, _joined(start, end, came | anew))

    async def _get(self, wanted: Iterable[range]) -> dict[int, bytes] | None:
        """Ask for ranges; what came, by offset, or None where one did not come."""
        transfer = self._transfer
        found = {}
        for each in wanted:
            with transfer.provisional.claim(each.start, len(each)):
                came = None if self.ask is None else await self.ask(each.start, len(each))
            if came is None or len(came) != len(each):
                return None
            self._peers.on_bytes(len(came))
            transfer.received.on_range(each.start, len(came), transfer.stored.layout.piece_length)
            found[each.start] = came
        return found

    def _take(self, run: range, data: bytes) -> bool:
        """Hand over the pieces of a run, up to the first that is wrong; whether none is."""
        size = self._transfer.stored.layout.piece_length
        for piece in run:
            part = data[(piece - run.start) * size :][:size]
            if self._transfer.is_coming(piece):
                continue
            if not self._transfer.on_piece_brought(piece, part):
                return False
        return True

    def pause(self) -> None:
        """Ask the swarm alone for a while: a server did not answer, or wrongly."""
        self._not_before = trio.current_time() + PAUSE_SECONDS


def _joined(start: int, end: int, parts: Mapping[int, bytes]) -> bytes:
    """The bytes from start to end, of which each is in a part."""
    data = bytearray(end - start)
    for offset, part in parts.items():
        cut = part[max(0, start - offset) : max(0, end - offset)]
        at = max(0, offset - start)
        data[at : at + len(cut)] = cut
    return bytes(data)


def _gaps(start: int, end: int, known: Mapping[int, bytes]) -> Iterator[tuple[int, int]]:
    """What lies between parts: offset and length."""
    for offset in sorted(known):
        if start < min(offset, end):
            yield start, min(offset, end) - start
        start = max(start, offset + len(known[offset]))
    if start < end:
        yield start, end - start


def _runs(pieces: Sequence[int], most: int) -> Iterator[range]:
    """Pieces as runs that are side by side, of at most so many each."""
    start = 0
    ordered = sorted(pieces)
    for at in range(1, len(ordered) + 1):
        ended = at == len(ordered) or ordered[at] != ordered[at - 1] + 1
        if ended or at - start >= most:
            yield range(ordered[start], ordered[at - 1] + 1)
            start = at
