"""One torrent: reads of verified bytes, and a have file that never says too much.

A piece goes this way: wanted (priority raised) → arrived (libtorrent checked its hash; readers get
it at once, from memory) → flushed, compared with its hash again as the file has it, synced →
durable (its have bit is set; it is read from the file from now on). transfer.py sees to the way up
to arrived, saver.py to the rest.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from functools import partial

import trio

from p2pcloop.errors import FormatError, NotHereError, P2pcloopError, StorageError, UsageError
from p2pcloopd.engine.ahead import Ahead
from p2pcloopd.engine.audit import Audit
from p2pcloopd.engine.completion import Completion
from p2pcloopd.engine.direct import Direct
from p2pcloopd.engine.handout import Handouts
from p2pcloopd.engine.http_pieces import HttpPieces
from p2pcloopd.engine.in_place import InPlace
from p2pcloopd.engine.interest import Interest
from p2pcloopd.engine.metainfo import TorrentLayout, parse_info
from p2pcloopd.engine.peers import Peers
from p2pcloopd.engine.provisional import Provisional
from p2pcloopd.engine.reads import Reads
from p2pcloopd.engine.record import Record, Sources
from p2pcloopd.engine.saver import RETRY_SECONDS, Saver
from p2pcloopd.engine.stored import Stored
from p2pcloopd.engine.swarm import Swarm, TorrentStatistics, Traffic
from p2pcloopd.engine.transfer import Transfer
from p2pcloopd.engine.unless import unless

log = logging.getLogger(__name__)

MAX_READ = 16 << 20
"""Bytes that one read may ask for."""

_NOT_THERE = (errno.ENODATA, errno.ENOENT)
"""What a read of a file tells that was cut short, or deleted."""


class Torrent:
    """One torrent of the store. Made by the engine.

    Attributes:
        info_hash: v1, 20 bytes.
        peers, transfer, saver: its parts, to which libtorrent's news go.
        ahead: asks for what readers expect.
        direct: brings pieces by exact ranges, where somebody can be asked so.
        completion: completes pieces of which some bytes are provisional.
        http: brings pieces from HTTP servers, where peers do not or are not to alone.
        handout: gets what only one has of many who want it.
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
        decode: Callable[[bytes], object],
        on_stall: Callable[[Torrent], None],
    ) -> None:
        self.info_hash = info_hash
        self.peers = Peers(swarm, partial(on_stall, self), self._rejoin)
        self.transfer = Transfer(swarm, self.peers, record.directory)
        self.http = HttpPieces(self.transfer, self.peers, swarm)
        self.saver = Saver(info_hash, self.transfer)
        self.in_place = InPlace(self.transfer, self.saver.lock)
        self.audit = Audit(self.transfer, self.peers, self.saver.verify, self.in_place.wake)
        self.transfer.suspect = self.audit.suspect
        self.handout = Handouts(self.transfer, self.peers)
        self.ahead = Ahead(self.transfer, self.peers, swarm, self.handout)
        self.direct = Direct(self.transfer, self.peers)
        self.transfer.direct = self.direct
        self.completion = Completion(self.transfer)
        self._interest = Interest(self.transfer)
        self._record = record
        self._swarm = swarm
        self._decode = decode
        self.elsewhere: Callable[[], Awaitable[bytes | None]] | None = None
        self.on_known: Callable[[Torrent, TorrentLayout], None] = lambda _torrent, _layout: None
        self._wanted = trio.Event()
        self._offered = trio.Event()
        self._reads = Reads(self.transfer, self.saver.mend)
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
            with self.peers.needed(), self.transfer.demand.waiting():
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

    def offer(self, elsewhere: Callable[[], Awaitable[bytes | None]] | None) -> None:
        """Tell where the metadata may be had from now on: see `elsewhere`."""
        self.elsewhere = elsewhere
        self._offered.set()

    async def read(
        self, offset: int, length: int, *, heal: bool = False, ahead: bool = False
    ) -> bytes:
        """Read verified bytes of the content, fetching what is not here.

        Waits as long as it takes. Cancellation stops the fetch of what nobody else waits for.

        Args:
            offset: from the start of the first file.
            length: 1 to 16 MiB.
            heal: what is on this disk was found wrong: compare the pieces with their hashes first
                and fetch those that differ again. If none does, the publisher made them so.
            ahead: nobody is kept waiting: readers who are come first.

        Raises:
            UsageError: the range is not inside the content.
            StorageError: the disk refused; the next read tries again.
            CorruptError: a file seeded where it lies changed since; nothing is written to it.
            FormatError: as for `metadata`.
        """
        pieces, missing = await self._look(offset, length, heal=heal)
        try:
            return await self._reads.read(offset, length, pieces, missing, ahead=ahead)
        except StorageError as err:
            # Files that were cut short or deleted behind our back, as `heal` finds them.
            if heal or err.errno not in _NOT_THERE:
                raise
        pieces, missing = await self._look(offset, length, heal=True)
        return await self._reads.read(offset, length, pieces, missing, ahead=ahead)

    @property
    def provisional(self) -> Provisional:
        """What was read by exact ranges, of pieces that are not here."""
        return self.transfer.provisional

    async def read_provisional(self, offset: int, length: int) -> bytes | None:
        """Bytes of which some are provisional and the others in pieces that are here.

        Returns:
            What nothing vouches for; None where bytes are missing, or where none is provisional.

        Raises:
            StorageError, CorruptError: as for `read`.
        """
        if not self.provisional.overlapping(offset, length):
            return None
        layout = self.layout
        if layout is None or offset + length > layout.total_size:
            return await self.provisional.read(offset, length)
        spans: list[tuple[bool, int, int]] = []
        for piece in layout.pieces_of(offset, length):
            first, size = layout.range_of(piece)
            first, last = max(first, offset), min(first + size, offset + length)
            whole = self.transfer.has(piece)
            if not whole and self.provisional.gaps(first, last - first):
                return None
            if spans and spans[-1][0] == whole:
                first = spans.pop()[1]
            spans.append((whole, first, last - first))
        if all(whole for whole, _, _ in spans):
            return None
        found = []
        for whole, first, size in spans:
            part = await (self.read if whole else self.provisional.read)(first, size)
            if part is None:
                return None
            found.append(part)
        return b"".join(found)

    async def bring(self, offset: int, length: int, *, heal: bool = False) -> None:
        """Wait until a read of these bytes is answered at once, keeping none of them in memory.

        Arguments, cancellation and errors are those of `read`.
        """
        _, missing = await self._look(offset, length, heal=heal)
        if missing:
            await self._reads.fetch(missing, keep=False)

    async def _look(self, offset: int, length: int, *, heal: bool) -> tuple[range, list[int]]:
        """The pieces of a range, and which of them are not durable."""
        layout = await self.metadata()
        if not (offset >= 0 and 0 < length <= MAX_READ and offset + length <= layout.total_size):
            raise UsageError(
                f"bytes {offset} to {offset + length} cannot be read: the torrent has"
                f" {layout.total_size} bytes, a read at most {MAX_READ}"
            )
        pieces = layout.pieces_of(offset, length)
        if heal:
            await self.verify(pieces)
        return pieces, [piece for piece in pieces if not self._stored.have.has(piece, piece)]

    async def evict(self, pieces: Collection[int]) -> bool:
        """See `Saver.evict`; parts go, too."""
        gone = await self.saver.evict(pieces, self._reads.unread)
        if gone:
            self.transfer.pieces.forget(pieces)
            self.provisional.clear()
            await self.provisional.flush()
        return gone

    async def verify(self, pieces: range) -> list[int]:
        """Compare those of `pieces` that are here with their hashes; drop and return wrong ones.

        The metadata must be known.

        Raises:
            StorageError: the disk refused.
            CorruptError: a file seeded where it lies changed since.
        """
        return await self.saver.verify(pieces)

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
            if self.transfer.running:
                self._swarm.add_sources(merged)
            await trio.to_thread.run_sync(self._record.save_sources, merged)
        self.peers.try_again()
        self.audit.look_again()

    @property
    def layout(self) -> TorrentLayout | None:
        """What `metadata` returns, if it is known already."""
        disk = self.transfer.disk
        return None if disk is None else disk.layout

    @property
    def have_bytes(self) -> int:
        """Bytes that are here: durable, or arrived and about to be."""
        return self.transfer.have_bytes

    def trouble(self) -> tuple[str | None, str | None]:
        """What is wrong with what was here: a word and a sentence (`TorrentStatistics`)."""
        disk = self.transfer.disk
        if disk is None:
            return None, None
        if disk.fault is not None:
            return disk.fault.value, str(disk.error())
        if not (lost := len(self.audit.lost())):
            return None, None
        return "damaged", f"pieces that were wrong on this disk, and are asked of others: {lost}"

    def traffic(self) -> Traffic:
        """What was transferred."""
        return self._swarm.traffic() if self.transfer.running else self.peers.traffic()

    def statistics(self) -> TorrentStatistics:
        """Its state, and what was transferred."""
        traffic, layout, received = self.traffic(), self.layout, self.transfer.received
        return TorrentStatistics(
            self.info_hash,
            layout.name if layout else None,
            layout.total_size if layout else None,
            self.have_bytes,
            *self.trouble(),
            traffic,
            self.transfer.provisional_bytes,
            received.bytes,
            received.again,
            received.hedged,
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
            self.transfer.join()

    async def run(self) -> None:
        """Save what arrives and keep peers connected while somebody waits, until `end`."""
        with self._running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.peers.run)
                nursery.start_soon(self.in_place.run)
                nursery.start_soon(self.audit.run)
                nursery.start_soon(self._look_elsewhere)
                nursery.start_soon(self.ahead.run)
                nursery.start_soon(self.handout.run)
                nursery.start_soon(self.direct.run)
                nursery.start_soon(self.http.run)
                nursery.start_soon(self.provisional.run)
                nursery.start_soon(self.completion.run)
                nursery.start_soon(self._interest.run)
                await self.saver.run()

    async def end(self) -> None:
        """Stop for good: it is not known here any more."""
        self.provisional.close()
        self._running.cancel()
        self._failed = NotHereError(f"torrent {self.info_hash.hex()} was removed")
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
        disk = self.transfer.disk
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
                await self.transfer.leave()

    def on_storage_error(self, error: StorageError) -> None:
        """Note that libtorrent cannot use a file."""
        disk = self.transfer.disk
        if disk is not None and disk.in_place:
            why = os.strerror(error.errno) if error.errno else str(error)
            disk.lose(StorageError(why, errno=error.errno or errno.EIO))  # looked at again soon
        else:
            self.saver.on_storage_error(error)

    def on_hash_failed(self, piece: int) -> None:
        """Note that a piece was wrong: ours, where it was here, and a peer's else."""
        disk = self.transfer.disk
        if disk is not None and disk.have.has(piece, piece):
            self.transfer.suspect([piece])

    # --- inside -----------------------------------------------------------------------------

    @property
    def _stored(self) -> Stored:
        return self.transfer.stored

    async def _look_elsewhere(self) -> None:
        """Get the metadata once it is needed, from the swarm where it is not had elsewhere."""
        await self._wanted.wait()
        while True:
            self._offered = trio.Event()
            ask = self.elsewhere if self.layout is None else None
            if ask is not None and (info := await unless(self._offered, ask)) is not None:
                await self.on_metadata(info, of_swarm=False)
            elif self._offered.is_set():
                continue
            async with self.saver.lock:
                if not self.transfer.running and self._failed is None:
                    self.transfer.join()
            await self._offered.wait()

    async def _accept(self, info: bytes) -> None:
        """Check the metadata, open the have bits, and let those go on who wait for them."""
        try:
            meta = parse_info(self._decode(info))
            self.transfer.disk = await trio.to_thread.run_sync(
                Stored, self._record, self.info_hash, info, meta
            )
            self.on_known(self, meta.layout)
        except P2pcloopError as err:
            self._fail(err)
        self._known.set()
        self.in_place.wake()
        self.transfer.notify()

    def _fail(self, error: P2pcloopError) -> None:
        """Tell all who wait and, for a moment, all who come."""
        log.error("torrent %s: %s", self.info_hash.hex(), error)
        self._failed, self._failed_at = error, trio.current_time()
        self._known.set()

    def _may_mend(self) -> bool:
        if self._failed is None or isinstance(self._failed, FormatError | NotHereError):
            return False
        return trio.current_time() - self._failed_at >= RETRY_SECONDS

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
        saved = self.transfer.running and self.transfer.saved
        await self.transfer.leave()
        if self.transfer.disk is not None:
            await trio.to_thread.run_sync(partial(self.transfer.disk.close, saved=saved))
