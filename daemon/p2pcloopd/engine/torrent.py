"""One torrent: reads of verified bytes, and a have file that never says too much.

A piece goes this way: wanted (priority raised) → arrived (libtorrent checked its hash; readers get
it at once, from memory) → flushed, compared with its hash again as the file has it, synced →
durable (its have bit is set; it is read from the file from now on). libtorrent cannot be told that
a piece it has is not here after all: then it leaves the swarm and joins again with what is
durable, and readers that wait do not notice.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

import trio

from p2pcloop.errors import P2pcloopError, StorageError, UsageError
from p2pcloopd.engine.metainfo import TorrentLayout, parse_info
from p2pcloopd.engine.peers import Peers, PeerTried
from p2pcloopd.engine.pieces import Pieces
from p2pcloopd.engine.record import Peer, Record, Sources
from p2pcloopd.engine.stored import Stored
from p2pcloopd.engine.swarm import BACKGROUND, DEMAND, IDLE, Swarm, Traffic

log = logging.getLogger(__name__)

MAX_READ = 16 << 20
"""Bytes that one read may ask for."""

SAVE_SECONDS = 1
SAVE_BYTES = 8 << 20
"""Arrived pieces are made durable after so long, or once they are so many."""

FLUSH_SECONDS = 10
"""How long a flush may take. Nothing depends on it: what is not in the file fails the compare."""

RETRY_SECONDS = 1
"""After an error of the disk, readers get the same error for so long before it is tried again."""


class Torrent:
    """One torrent of the store. Made by the engine.

    Attributes:
        info_hash: v1, 20 bytes.
    """

    def __init__(
        self,
        info_hash: bytes,
        record: Record,
        swarm: Swarm,
        decode: Callable[[bytes], object],
        on_stall: Callable[[Torrent], None],
    ) -> None:
        self.info_hash = info_hash
        self._record = record
        self._swarm = swarm
        self._decode = decode
        self._peers = Peers(swarm, partial(on_stall, self))
        self._pieces = Pieces(self._raise, self._lower)
        self._known = trio.Event()
        self._disk: Stored | None = None
        self._arrived: set[int] = set()
        self._background: set[int] = set()
        self._background_users = 0
        self._scan: Iterator[int] = iter(())
        self._running = False
        self._lock = trio.Lock()
        self._dirty = trio.Event()
        self._plenty = trio.Event()
        self._flushed = trio.Event()
        self._changed = trio.Event()
        self._failed: P2pcloopError | None = None
        self._broken: StorageError | None = None
        self._broken_at = 0.0

    # --- what callers use -------------------------------------------------------------------

    async def metadata(self) -> TorrentLayout:
        """Wait until it is known what the torrent consists of.

        Raises:
            FormatError: the metadata is not acceptable.
            CorruptError: a file that is seeded where it lies is gone or has another size.
        """
        if not self._known.is_set():
            with self._peers.needed():
                await self._known.wait()
        if self._failed is not None:
            raise self._failed
        return self._stored.layout

    async def read(self, offset: int, length: int, *, heal: bool = False) -> bytes:
        """Read verified bytes of the content, fetching what is not here.

        Waits as long as it takes. Cancellation stops the fetch of what nobody else waits for.

        Args:
            offset: from the start of the first file.
            length: 1 to 16 MiB.
            heal: what is on this disk was found wrong: compare the pieces with their hashes
                first and fetch those that differ again. If all are right, the bytes are as the
                publisher made them.

        Raises:
            UsageError: the range is not inside the content.
            StorageError: the disk refused; the next read tries again.
            CorruptError: a file seeded where it lies changed since; nothing is written to it.
            FormatError: as for `metadata`.
        """
        layout = await self.metadata()
        if not (offset >= 0 and 0 < length <= MAX_READ and offset + length <= layout.total_size):
            raise UsageError(
                f"bytes {offset} to {offset + length} cannot be read: the torrent has"
                f" {layout.total_size} bytes, a read at most {MAX_READ}"
            )
        pieces = layout.pieces_of(offset, length)
        if heal:
            await self.verify(pieces)
        missing = [piece for piece in pieces if not self._stored.have.has(piece, piece)]
        if not missing:
            return await trio.to_thread.run_sync(self._stored.content.read, offset, length)
        fetched = await self._fetch(missing)
        data = []
        for piece in pieces:
            got = fetched.get(piece)
            if got is None:
                got = await trio.to_thread.run_sync(self._stored.content.read_piece, piece)
            data.append(got)
        start = offset - pieces[0] * layout.piece_length
        return b"".join(data)[start : start + length]

    async def verify(self, pieces: range) -> list[int]:
        """Compare those of `pieces` that are here with their hashes; drop and return wrong ones.

        The metadata must be known.

        Raises:
            StorageError: the disk refused.
            CorruptError: a file seeded where it lies changed since.
        """
        async with self._lock:
            wrong = await trio.to_thread.run_sync(self._stored.drop_wrong, pieces)
            if wrong:
                log.warning(
                    "torrent %s: pieces %s are wrong on the disk and fetched again",
                    self.info_hash.hex(),
                    wrong,
                )
                await self._rejoin()
        return wrong

    async def fetch_all(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Fetch whatever is missing, behind any reader that waits, and make it durable.

        Args:
            progress: called with (bytes here, bytes in all) as pieces arrive.

        Raises:
            StorageError, CorruptError, FormatError: as for `read`.
        """
        layout = await self.metadata()
        self._background_users += 1
        try:
            with self._peers.needed():
                while not self._stored.have.complete():
                    await self._mend()
                    if self._stored.have.count + len(self._arrived) == layout.pieces:
                        await self.save()
                        continue
                    changed = self._changed
                    self._top_up(layout)
                    await changed.wait()
                    if progress is not None:
                        progress(self.have_bytes, layout.total_size)
        finally:
            self._background_users -= 1
            if not self._background_users:
                idle, self._background = self._background, set()
                self._lower(idle)
        if progress is not None:
            progress(layout.total_size, layout.total_size)

    async def save(self) -> None:
        """Make every piece that has arrived durable. An error of the disk goes to the readers."""
        async with self._lock:
            await self._save()

    async def add_sources(self, sources: Sources) -> None:
        """Look at more places, and remember them.

        Raises:
            StorageError: they could not be remembered.
        """
        merged = self._peers.sources | sources
        if merged != self._peers.sources:
            self._peers.sources = merged
            if self._running:
                self._swarm.add_sources(merged)
            await trio.to_thread.run_sync(self._record.save_sources, merged)
        self._peers.try_again()

    async def add_peers(self, *peers: Peer) -> None:
        """Try these peers too, and remember them. Errors as for `add_sources`."""
        await self.add_sources(Sources(peers=peers))

    def peers_tried(self) -> tuple[PeerTried, ...]:
        """The peers that the user named, and how it went with each."""
        return self._peers.tried()

    @property
    def layout(self) -> TorrentLayout | None:
        """What `metadata` returns, if it is known already."""
        return None if self._disk is None else self._disk.layout

    @property
    def have_bytes(self) -> int:
        """Bytes that are here: durable, or arrived and about to be."""
        if self._disk is None:
            return 0
        layout, have = self._disk.layout, self._disk.have
        if have.complete():
            return layout.total_size
        count = have.count + len(self._arrived)
        return min(count * layout.piece_length, layout.total_size)

    def traffic(self) -> Traffic:
        """What was transferred."""
        return self._swarm.traffic() if self._running else Traffic()

    # --- what the engine uses ---------------------------------------------------------------

    async def start(self, sources: Sources) -> None:
        """Load what the store has and join the swarm, with `sources` too.

        Raises:
            StorageError: the store cannot be read or written.
        """
        kept = await trio.to_thread.run_sync(self._record.load_sources)
        self._peers.sources = kept | sources
        if self._peers.sources != kept:
            await trio.to_thread.run_sync(self._record.save_sources, self._peers.sources)
        info = await trio.to_thread.run_sync(self._record.load_torrent, self.info_hash)
        if info is not None:
            await self._accept(info)
        if self._failed is None:
            self._join()

    async def run(self) -> None:
        """Save what arrives and keep peers connected while somebody waits, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._peers.run)
            while True:
                await self._dirty.wait()
                with trio.move_on_after(SAVE_SECONDS):
                    await self._plenty.wait()
                await self.save()

    async def stop(self) -> None:
        """Leave the swarm and close the files of the store."""
        async with self._lock:
            self._running = False
            await self._swarm.stop()
            if self._disk is not None:
                self._disk.have.close()

    async def replace(self, move: Callable[[], None]) -> None:
        """Leave the swarm, `move` other content into place, and join again; readers go on."""
        async with self._lock:
            self._running = False
            await self._swarm.stop()
            if self._disk is not None:
                self._disk.have.close()
            await trio.to_thread.run_sync(move)
            self._failed = self._broken = None
            self._arrived.clear()
            await self.start(Sources())

    def usable(self) -> bool:
        """Whether everything is here, with nothing known to be wrong."""
        return self._failed is None and self._disk is not None and self._disk.have.complete()

    async def on_metadata(self, info: bytes) -> None:
        """Take the info dictionary that peers sent; libtorrent compared it with the info hash."""
        if self._known.is_set():
            return
        try:
            await trio.to_thread.run_sync(self._record.save_torrent, info)
            await self._accept(info)
        except StorageError as err:
            self._failed = err
            self._known.set()
        if self._failed is not None:
            self._running = False
            await self._swarm.stop()

    def on_piece_arrived(self, piece: int) -> None:
        """Note that libtorrent has a piece and found it right."""
        if self._disk is None or self._disk.have.has(piece, piece):
            return
        self._arrived.add(piece)
        self._background.discard(piece)
        if piece in self._pieces:
            self._swarm.read_piece(piece)
        self._dirty.set()
        if len(self._arrived) * self._disk.layout.piece_length >= SAVE_BYTES:
            self._plenty.set()
        self._notify()

    def on_piece_read(self, piece: int, data: bytes) -> None:
        """Take a piece that `Swarm.read_piece` was asked for."""
        self._pieces.deliver(piece, data)
        self._notify()

    def on_read_failed(self, piece: int) -> None:
        """Note that libtorrent does not have a piece that it said it had: it is to come again."""
        self._arrived.discard(piece)
        if piece in self._pieces:
            self._raise([piece])

    def on_flushed(self) -> None:
        """Note that libtorrent's cache is in the files."""
        self._flushed.set()

    def on_storage_error(self, error: StorageError) -> None:
        """Tell all who wait; the next who asks tries again, after a moment."""
        if self._broken is None:  # the first error is the cause, others follow from it
            log.error("torrent %s: %s", self.info_hash.hex(), error)
            self._broken, self._broken_at = error, trio.current_time()
        self._pieces.fail(self._broken)
        self._notify()

    @property
    def broken(self) -> bool:
        """Whether the disk refused and it was not tried again yet."""
        return self._broken is not None

    def on_checked(self) -> None:
        """Compare notes: after libtorrent looked at the files, or when its reports were lost."""
        here, disk = self._swarm.here(), self._disk
        if disk is None or len(here) != disk.layout.pieces:
            return
        if disk.in_place:
            gone = [p for p, right in enumerate(here) if not right and disk.have.has(p, p)]
            if gone:
                log.error("%s", disk.changed_error())
                disk.have.drop(*gone)
            return
        for piece, right in enumerate(here):
            if right:
                self.on_piece_arrived(piece)
        self.on_flushed()
        self._raise(self._pieces.wanted)

    @property
    def peers(self) -> Peers:
        """Who is connected, and how it went with the others."""
        return self._peers

    # --- inside -----------------------------------------------------------------------------

    @property
    def _stored(self) -> Stored:
        assert self._disk is not None, "the metadata is not known yet"
        return self._disk

    async def _accept(self, info: bytes) -> None:
        """Check the metadata, open the have bits, and let those go on who wait for them."""
        try:
            meta = parse_info(self._decode(info))
            self._disk = await trio.to_thread.run_sync(
                Stored, self._record, self.info_hash, info, meta
            )
        except P2pcloopError as err:
            log.error("torrent %s: %s", self.info_hash.hex(), err)
            self._failed = err
        self._known.set()
        self._notify()

    def _join(self) -> None:
        """Join the swarm with what is durable, and ask again for what readers wait for."""
        disk = self._disk
        info = None if disk is None else disk.info
        have = [] if disk is None else None if disk.in_place else disk.have.to_list()
        self._swarm.start(info, have, self._peers.sources)
        self._running = True
        self._peers.try_again()
        self._background.clear()
        self._scan = iter(())
        self._raise(self._pieces.wanted)
        self._notify()

    async def _fetch(self, missing: list[int]) -> dict[int, bytes | None]:
        await self._mend()
        if self._stored.in_place:
            raise self._stored.changed_error()
        with self._peers.needed():
            return await self._pieces.get(missing)

    def _raise(self, pieces: Iterable[int]) -> None:
        if not self._running:
            return
        absent = []
        for piece in pieces:
            if self._stored.have.has(piece, piece):
                self._pieces.deliver(piece, None)
            elif piece in self._arrived:
                self._swarm.read_piece(piece)
            else:
                absent.append(piece)
        self._swarm.prioritize(absent, DEMAND)

    def _lower(self, pieces: Iterable[int]) -> None:
        if self._running:
            unwanted = [p for p in pieces if p not in self._arrived and p not in self._pieces]
            idle = [piece for piece in unwanted if piece not in self._background]
            self._swarm.prioritize(idle, IDLE)
            self._swarm.prioritize(self._background.intersection(unwanted), BACKGROUND)
        self._notify()

    def _top_up(self, layout: TorrentLayout) -> None:
        """Keep a window of background pieces asked for; none more while a reader waits."""
        if self._pieces.wanted or not self._running:
            return
        window = self._peers.window() // layout.piece_length + 1
        if len(self._background) > window // 2:
            return  # in batches: a call to libtorrent for each piece would cost more
        room = window - len(self._background)
        fresh = list(islice(self._scan, room))
        if not fresh and not self._background:
            self._scan = self._absent(layout)
            fresh = list(islice(self._scan, room))
        self._background.update(fresh)
        self._swarm.prioritize(fresh, BACKGROUND)

    def _absent(self, layout: TorrentLayout) -> Iterator[int]:
        """Go once through the pieces that are not here when they are come to."""
        for piece in range(layout.pieces):
            if not self._stored.have.has(piece, piece) and piece not in self._arrived:
                yield piece

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _save(self) -> None:
        self._dirty, self._plenty = trio.Event(), trio.Event()
        if not self._arrived or not self._running:
            return
        self._flushed = trio.Event()
        batch = sorted(self._arrived)
        self._swarm.flush()
        with trio.move_on_after(FLUSH_SECONDS):
            await self._flushed.wait()
        try:
            wrong = await trio.to_thread.run_sync(self._stored.save, batch)
        except StorageError as err:
            self.on_storage_error(err)
            return
        self._arrived.difference_update(batch)
        if wrong:
            log.warning(
                "torrent %s: %d pieces did not reach the disk", self.info_hash.hex(), len(wrong)
            )
            await self._rejoin()
        self._notify()

    async def _rejoin(self) -> None:
        self._running = False
        await self._swarm.stop()
        self._arrived.clear()
        self._join()

    async def _mend(self) -> None:
        """After an error of the disk: raise it again for a moment, then begin anew."""
        if self._broken is None:
            return
        if trio.current_time() - self._broken_at < RETRY_SECONDS:
            raise StorageError(
                str(self._broken), errno=self._broken.errno or errno.EIO, hint=self._broken.hint
            )
        async with self._lock:
            if self._broken is not None:
                self._broken = None
                await self._rejoin()
