"""Compares pieces with their hashes before, or right after, they are sent to others.

No client tells a seeder that a piece of it is wrong: it hangs up, and asks no more. So:

- Over HTTP nothing leaves before its pieces were compared (`Stored.read_right`).
- Of a torrent that is whole, libtorrent compares each piece before it sends the first of it (its
  seed mode), once for each time that it is joined.
- Any other piece that was sent over BitTorrent is compared right afterwards, unless it was within
  the last day. The first client may get it wrong, and no other.

Where a piece is wrong, all are compared: a disk that lost one may have lost others. Wrong ones
are dropped, and asked of other sources. There is no scrub of what no client asks for: it would keep
disks awake, and what is wrong there hurts no client yet.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable

import trio
from trio.lowlevel import RunVar

from p2pcloop.errors import CorruptError, NotHereError, P2pcloopError, StorageError
from p2pcloopd.engine.fetch.fetcher import Fetcher
from p2pcloopd.engine.fetch.peers import Peers
from p2pcloopd.engine.fetch.store import Store
from p2pcloopd.engine.fetch.tuning import Tuning

log = logging.getLogger(__name__)

_limiter = RunVar[trio.CapacityLimiter]("audit reads")


def _reading(tuning: Tuning) -> trio.CapacityLimiter:
    """Bounds the threads that compare for other clients, of all torrents."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(tuning.compare_concurrency)
        _limiter.set(limiter)
        return limiter


class Audit:
    """Of one torrent.

    Args:
        verify: compares pieces, drops those that are wrong and returns them (`Saver.verify`).
        wake: called where a file that lies elsewhere was found wrong.
    """

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        peers: Peers,
        verify: Callable[[Collection[int]], Awaitable[list[int]]],
        wake: Callable[[], None],
        tuning: Tuning,
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._peers = peers
        self._verify = verify
        self._wake = wake
        self._tuning = tuning
        self._suspects: set[int] = set()
        self._some = trio.Event()
        self._compared: dict[int, float] = {}
        self._lost: set[int] = set()
        self._lost_some = trio.Event()
        self._peers_named = trio.Event()

    def look_again(self) -> None:
        """Ask for what was lost now: there are more places where it may be had."""
        self._peers_named.set()
        self._peers_named = trio.Event()

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes that are durable here, for others: compared with their hashes.

        Raises:
            NotHereError: they are not, or were found wrong.
            StorageError: the disk refuses.
        """
        stored = self._store.stored
        try:
            data = stored.read_right(offset, length, now=True)
            if data is None:
                data = await trio.to_thread.run_sync(
                    stored.read_right, offset, length, limiter=_reading(self._tuning)
                )
        except CorruptError as err:
            self.suspect(stored.layout.pieces_of(offset, length))
            raise NotHereError(err.message) from err
        assert data is not None, "only a read that must not wait gives nothing"
        return data

    def suspect(self, pieces: Iterable[int]) -> None:
        """Have pieces that are here compared with their hashes now."""
        self._suspects.update(pieces)
        self._some.set()

    def sent(self, piece: int) -> None:
        """Note that a client was given a part of a piece over BitTorrent."""
        since = self._compared.get(piece, self._store.compared_since)
        if trio.current_time() - since >= self._tuning.compare_holds:
            self._compared[piece] = trio.current_time()
            self.suspect([piece])

    def lost(self) -> list[int]:
        """The pieces that were found wrong, and are not here again."""
        self._lost = {piece for piece in self._lost if not self._store.has(piece)}
        return sorted(self._lost)

    async def run(self) -> None:
        """Compare what is suspected, and get again what is wrong, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heal)
            while True:
                await self._some.wait()
                self._some = trio.Event()
                suspects, self._suspects = self._suspects, set()
                try:
                    if await self._compare(sorted(suspects)):
                        await self._compare_all()
                except CorruptError:
                    self._wake()
                except StorageError as err:
                    log.error("cannot compare pieces with their hashes: %s", err)

    async def _compare_all(self) -> None:
        layout = self._store.stored.layout
        step = max(1, self._tuning.compare_step // layout.piece_length)
        for first in range(0, layout.pieces, step):
            await self._compare(range(first, min(first + step, layout.pieces)))

    async def _compare(self, pieces: Collection[int]) -> list[int]:
        wrong = await self._verify(pieces)
        self._compared.update(dict.fromkeys(pieces, trio.current_time()))
        if wrong:
            self._lost.update(wrong)
            self._lost_some.set()
        return wrong

    async def _heal(self) -> None:
        """Get pieces again that were wrong, behind what readers wait for."""
        while True:
            await self._lost_some.wait()
            self._lost_some = trio.Event()
            while missing := self.lost():
                # libtorrent is about to say that it has the others.
                missing = [piece for piece in missing if not self._store.is_coming(piece)]
                if not missing:
                    await self._store.changed.wait()
                    continue
                with trio.move_on_after(self._tuning.heal):
                    try:
                        with self._peers.needed():
                            await self._fetcher.get(missing, keep=False, ahead=True)
                            continue
                    except P2pcloopError as err:
                        log.warning("what was wrong on the disk does not come again: %s", err)
                with trio.move_on_after(self._tuning.heal_pause):
                    await self._peers_named.wait()
