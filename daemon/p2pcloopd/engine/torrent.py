"""One torrent: reads of verified bytes, and a have file that never says too much.

A piece goes this way: wanted (priority raised) → arrived (libtorrent checked its hash; readers get
it at once, from memory) → flushed, compared with its hash again as the file has it, synced →
durable (its have bit is set; it is read from the file from now on). fetch/ sees to the way up to
arrived, saver.py to the rest.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from functools import partial

import trio

from p2pcloop.errors import FormatError, NotHereError, P2pcloopError, StorageError
from p2pcloop.words import tr
from p2pcloopd.engine.disk.metainfo import TorrentLayout, parse_info
from p2pcloopd.engine.disk.record import Record, Sources
from p2pcloopd.engine.disk.stored import Stored
from p2pcloopd.engine.fetch.backfill import Completion, Interest
from p2pcloopd.engine.fetch.demand import Demand
from p2pcloopd.engine.fetch.fetcher import Fetcher
from p2pcloopd.engine.fetch.peers import Peers
from p2pcloopd.engine.fetch.range_requests import Servers
from p2pcloopd.engine.fetch.reads import Hold, Reads, hold_any
from p2pcloopd.engine.fetch.store import Store
from p2pcloopd.engine.fetch.swarm import Priority, Swarm, TorrentStatistics, Traffic
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.engine.saver import Saver
from p2pcloopd.engine.verify.audit import Audit
from p2pcloopd.engine.verify.in_place import InPlace
from p2pcloopd.tasks import Pulse, race

log = logging.getLogger(__name__)


class Torrent:
    """One torrent of the store. Made by the engine.

    Attributes:
        info_hash: v1, 20 bytes.
        store: what is here; fetcher: what is wanted, and fetched; saver: makes it durable.
        peers: whom to try.
        demand: the readers of all torrents.
        tuning: the engine's constants.
        reads: answers reads.
        completion: completes pieces of which some bytes are provisional.
        audit: compares what others are given with its hashes.
        in_place: watches files that are seeded where they lie.
        elsewhere: gets the bencoded info dictionary, checked, from another place than the swarm,
            or None; `offer` sets it. Where that is before the start, the swarm waits for a need.
        on_known: called with the torrent and its layout once that is known.
    """

    def __init__(
        self,
        info_hash: bytes,
        record: Record,
        swarm: Swarm,
        demand: Demand,
        *,
        decode: Callable[[bytes], object],
        on_stall: Callable[[Torrent], None],
        tuning: Tuning = TUNING,
    ) -> None:
        self.info_hash = info_hash
        self.demand = demand
        self.tuning = tuning
        changed = Pulse()
        self.peers = Peers(swarm, partial(on_stall, self), self._rejoin, tuning, changed)
        self.store = Store(swarm, record.directory, demand, tuning, changed)
        self.fetcher = Fetcher(swarm, self.peers, self.store, demand, tuning)
        self.saver = Saver(info_hash, self.store, self.fetcher, tuning)
        self.in_place = InPlace(self.store, self.fetcher, self.saver.lock, tuning)
        self.audit = Audit(
            self.store, self.fetcher, self.peers, self.saver.verify, self.in_place.wake, tuning
        )
        self.store.suspect = self.audit.suspect
        self.completion = Completion(self.store, self.fetcher, demand, tuning)
        self._interest = Interest(self.store, self.fetcher, demand, tuning)
        self.reads = Reads(self.store, self.fetcher, demand, tuning, owner=self)
        self._record = record
        self._swarm = swarm
        self._decode = decode
        self.elsewhere: Callable[[], Awaitable[bytes | None]] | None = None
        self.on_known: Callable[[Torrent, TorrentLayout], None] = lambda _torrent, _layout: None
        self._wanted, self._wanted_later = trio.Event(), trio.Event()
        self._offered = trio.Event()
        self._running = trio.CancelScope()
        self._known = trio.Event()
        self._failed: P2pcloopError | None = None
        self._failed_at = 0.0

    # --- what callers use -------------------------------------------------------------------

    async def metadata(self) -> TorrentLayout:
        """Wait until it is known what the torrent consists of.

        Raises:
            FormatError: the metadata is not acceptable.
            CorruptError: a file that is seeded where it lies is gone or has another size.
            StorageError: the metadata could not be kept; it is tried again after a moment.
        """
        self.want_metadata()
        await self._mend()
        while not self._known.is_set():  # again where another reader began anew meanwhile
            with self.peers.needed(), self.demand.waiting():
                await self._known.wait()
        if self._failed is not None:
            raise self._failed
        if self._stored.fault is not None:
            await self.in_place.look()
        if self._stored.fault is not None:
            raise self._stored.error()
        return self._stored.layout

    def want_metadata(self) -> None:
        """Have the metadata got from now on; waits for nothing."""
        self._wanted.set()

    def want_metadata_later(self) -> None:
        """The same, once no reader waits: what one wants goes first."""
        self._wanted_later.set()

    def offer(self, elsewhere: Callable[[], Awaitable[bytes | None]] | None) -> None:
        """Tell where the metadata may be had from now on: see `elsewhere`."""
        self.elsewhere = elsewhere
        self._offered.set()

    async def read(
        self, offset: int, length: int, *, heal: bool = False, ahead: bool = False
    ) -> bytes:
        """Read verified bytes of the content, fetching what is not here.

        Waits as long as it takes. Cancellation stops the fetch of what no other reader waits for.

        Args:
            offset: from the start of the first file.
            length: 1 to 16 MiB.
            heal: what is on this disk was found wrong: compare the pieces with their hashes first
                and fetch those that differ again. If none does, the publisher made them so.
            ahead: no guest waits: readers for which one does come first.

        Raises:
            UsageError: the range is not inside the content.
            StorageError: the disk refused; the next read tries again.
            CorruptError: a file seeded where it lies changed since; nothing is written to it.
            FormatError: as for `metadata`.
        """
        return await self.reads.read(offset, length, heal=heal, ahead=ahead)

    async def read_range(
        self,
        offset: int,
        length: int,
        *,
        heal: bool = False,
        ahead: bool = False,
        exact: bool = True,
        hold: Hold = hold_any,
    ) -> bytes:
        """Bytes of the content in whatever form they are here, or come; the reader verifies them.

        See `Reads.read_range`. Cancellation and errors are those of `read`.
        """
        return await self.reads.read_range(
            offset, length, heal=heal, ahead=ahead, exact=exact, hold=hold
        )

    async def fetch(self, offset: int, length: int, *, heal: bool = False) -> None:
        """Wait until a read of these bytes is answered at once, keeping none of them in memory.

        Arguments, cancellation and errors are those of `read`.
        """
        await self.reads.fetch(offset, length, heal=heal)

    def has(self, offset: int, length: int) -> bool:
        """Whether a range is durable; False where the metadata is not known."""
        disk = self.store.disk
        return disk is not None and disk.has(offset, length)

    @property
    def servers(self) -> Servers:
        """The HTTP servers that may have it."""
        return self.fetcher.ranges.servers

    @servers.setter
    def servers(self, servers: Servers) -> None:
        self.fetcher.ranges.servers = servers
        self.store.changed.notify()

    def coming(self) -> list[int]:
        """The pieces that a peer or a server was asked for, and that are not here, in order."""
        wants = self.fetcher.wants.table.values()
        return sorted(w.piece for w in wants if w.asked is not Priority.IDLE or w.flight)

    def guess_is_worth_it(self, length: int) -> bool:
        """Whether so many bytes arrive soon enough to be read ahead on a guess."""
        rate = self.servers.rate
        return rate is None or length <= rate * self.tuning.guess

    async def evict(self, pieces: Collection[int]) -> bool:
        """See `Saver.evict`; provisional ranges go, too."""
        gone = await self.saver.evict(pieces, self.reads.unread)
        if gone:
            self.fetcher.wants.forget(pieces)
            self.store.provisional.clear()
            await self.store.provisional.flush()
        return gone

    async def verify(self, pieces: range) -> list[int]:
        """Compare those of `pieces` that are here with their hashes; drop and return wrong ones.

        The metadata must be known.

        Raises:
            StorageError: the disk refused.
            CorruptError: a file seeded where it lies changed since.
        """
        return await self.saver.verify(pieces)

    async def mend(self) -> None:
        """Raise what the disk refused a moment ago, or begin anew.

        Raises:
            StorageError: what it refused.
        """
        await self.saver.mend()

    async def save(self) -> None:
        """Make every piece that has arrived durable. An error of the disk goes to the readers."""
        await self.saver.save()

    async def add_sources(self, sources: Sources) -> None:
        """Look at more places, and remember them.

        Raises:
            StorageError: they could not be remembered.
        """
        merged = self.peers.sources | sources
        if merged != self.peers.sources:
            self.peers.sources = merged
            if self.store.running:
                self._swarm.add_sources(merged)
            await trio.to_thread.run_sync(self._record.save_sources, merged)
        self.peers.try_again()
        self.audit.look_again()

    @property
    def layout(self) -> TorrentLayout | None:
        """What `metadata` returns, if it is known already."""
        disk = self.store.disk
        return None if disk is None else disk.layout

    @property
    def have_bytes(self) -> int:
        """Bytes that are here: durable, or arrived and about to be."""
        return self.store.have_bytes

    def trouble(self) -> tuple[str | None, str | None]:
        """What is wrong with what was here: a word and a sentence (`TorrentStatistics`)."""
        disk = self.store.disk
        if disk is None:
            return None, None
        if disk.fault is not None:
            return disk.fault.value, str(disk.error())
        if not (lost := len(self.audit.lost())):
            return None, None
        return "damaged", tr(
            "pieces that were wrong on this disk, and are asked of others: {lost}", lost=lost
        )

    def traffic(self) -> Traffic:
        """What was transferred."""
        return self._swarm.traffic() if self.store.running else self.peers.traffic()

    def statistics(self) -> TorrentStatistics:
        """Its state, and what was transferred."""
        traffic, layout, received = self.traffic(), self.layout, self.store.received
        wanted = self.peers.wanted
        return TorrentStatistics(
            self.info_hash,
            layout.name if layout else None,
            layout.total_size if layout else None,
            self.have_bytes,
            *self.trouble(),
            traffic,
            self.store.provisional_bytes,
            received.bytes,
            received.again,
            received.hedged,
            wanted,
            self.peers.stalled(),
            (*map(str, self.peers.tried()), *self.servers.faults()) if wanted else (),
        )

    # --- what the engine uses ---------------------------------------------------------------

    async def start(self, sources: Sources) -> None:
        """Load what the store has and join the swarm, with `sources` too.

        Raises:
            StorageError: the store cannot be read or written.
        """
        kept = await trio.to_thread.run_sync(self._record.load_sources)
        self.peers.sources = kept | sources
        if self.peers.sources != kept:
            await trio.to_thread.run_sync(self._record.save_sources, self.peers.sources)
        info = await trio.to_thread.run_sync(self._record.load_torrent, self.info_hash)
        if info is not None:
            await self._accept(info)
        if self._failed is None and (info is not None or self.elsewhere is None):
            self.fetcher.join()

    async def run(self) -> None:
        """Save what arrives and keep peers connected while data is needed, until `end`."""
        with self._running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.peers.run)
                nursery.start_soon(self.in_place.run)
                nursery.start_soon(self.audit.run)
                nursery.start_soon(self._want_when_quiet)
                nursery.start_soon(self._look_elsewhere)
                nursery.start_soon(self.fetcher.run)
                nursery.start_soon(self.store.provisional.run)
                nursery.start_soon(self.completion.run)
                nursery.start_soon(self._interest.run)
                await self.saver.run()

    async def end(self) -> None:
        """Stop for good: it is not known here any more."""
        self.store.provisional.close()
        self._running.cancel()
        self._failed = NotHereError(
            tr("torrent {info_hash} was removed", info_hash=self.info_hash.hex())
        )
        self._known.set()
        await self.stop()

    async def stop(self) -> None:
        """Leave the swarm and close the files of the store."""
        async with self.saver.lock:
            await self._leave()

    async def replace(self, move: Callable[[], None]) -> None:
        """Leave the swarm, `move` other content into place, and join again; readers go on.

        Once begun it is not cancelled, and where `move` fails the swarm is joined all the same.
        """
        async with self.saver.lock:
            with trio.CancelScope(shield=True):
                await self._leave()
                try:
                    await trio.to_thread.run_sync(move)
                finally:
                    self.saver.forget_error()
                    await self._begin_anew()

    def usable(self) -> bool:
        """Whether everything is here, with nothing known to be wrong. Looks at the disk."""
        disk = self.store.disk
        return self._failed is None and disk is not None and disk.usable()

    async def on_metadata(self, info: bytes, *, of_swarm: bool = True) -> None:
        """Take the info dictionary, compared with the info hash; else the swarm is left for it."""
        async with self.saver.lock:
            if self._known.is_set():
                return
            try:
                await trio.to_thread.run_sync(self._record.save_torrent, info)
                await self._accept(info)
            except StorageError as err:
                self._fail(err)
            if self._failed is not None or not of_swarm:
                await self.fetcher.leave()

    def on_storage_error(self, error: StorageError) -> None:
        """Note that libtorrent cannot use a file."""
        disk = self.store.disk
        if disk is not None and disk.in_place:
            why = os.strerror(error.errno) if error.errno else str(error)
            disk.lose(StorageError(why, errno=error.errno or errno.EIO))  # looked at again soon
        else:
            self.saver.on_storage_error(error)

    def on_hash_failed(self, piece: int) -> None:
        """Note that a piece was wrong: ours, where it was here, and a peer's else."""
        disk = self.store.disk
        if disk is not None and disk.have.has(piece, piece):
            self.store.suspect([piece])

    # --- inside -----------------------------------------------------------------------------

    @property
    def _stored(self) -> Stored:
        return self.store.stored

    async def _want_when_quiet(self) -> None:
        await self._wanted_later.wait()
        with trio.move_on_after(self.tuning.metadata_late):
            await self.demand.quiet(self.tuning.metadata_follow, trio.current_time())
        self.want_metadata()

    async def _look_elsewhere(self) -> None:
        """Get the metadata once it is needed, from the swarm where it is not had elsewhere."""
        await self._wanted.wait()
        while True:
            self._offered = trio.Event()
            ask = self.elsewhere if self.layout is None else None
            if ask is not None and (info := await race(self._offered, ask)) is not None:
                await self.on_metadata(info, of_swarm=False)
            elif self._offered.is_set():
                continue
            async with self.saver.lock:
                if not self.store.running and self._failed is None:
                    self.fetcher.join()
            await self._offered.wait()

    async def _accept(self, info: bytes) -> None:
        """Check the metadata, open the have bits, and let those go on who wait for them."""
        try:
            meta = parse_info(self._decode(info))
            self.store.disk = await trio.to_thread.run_sync(
                Stored, self._record, self.info_hash, info, meta
            )
            self.on_known(self, meta.layout)
        except P2pcloopError as err:
            self._fail(err)
        self._known.set()
        self.in_place.wake()
        self.store.changed.notify()

    def _fail(self, error: P2pcloopError) -> None:
        """Tell all who wait and, for a moment, all who come."""
        log.error("torrent %s: %s", self.info_hash.hex(), error)
        self._failed, self._failed_at = error, trio.current_time()
        self._known.set()

    def _may_mend(self) -> bool:
        if self._failed is None or isinstance(self._failed, FormatError | NotHereError):
            return False
        return trio.current_time() - self._failed_at >= self.tuning.disk_retry

    async def _mend(self) -> None:
        """Begin anew where the disk refused, or a file was not there, a moment ago or earlier."""
        if not self._may_mend():
            return
        async with self.saver.lock:
            if self._may_mend():
                with trio.CancelScope(shield=True):
                    self._known = trio.Event()
                    await self._begin_anew()

    async def _begin_anew(self) -> None:
        self._failed = None
        self._offered.set()
        try:
            await self.start(Sources())
        except StorageError as err:
            self._fail(err)

    async def _rejoin(self) -> None:
        await self.saver.rejoin()

    async def _leave(self) -> None:
        saved = self.store.running and self.fetcher.saved
        await self.fetcher.leave()
        if self.store.disk is not None:
            await trio.to_thread.run_sync(partial(self.store.disk.close, saved=saved))
