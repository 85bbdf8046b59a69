"""Reads of a torrent's content, whatever form it is here in, or comes in.

A read is answered from memory where its pieces arrived lately, from the files where it is durable,
from provisional bytes, or by asking for it: its exact bytes of a server, or its pieces.

Room is given back only when no read of the files is under way that began while the bits still said
that all was there: see `unread`.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Protocol, TypeVarTuple

import trio

from p2pcloop.errors import P2pcloopError, StorageError, UsageError
from p2pcloop.words import tr
from p2pcloopd.engine.disk.metainfo import TorrentLayout
from p2pcloopd.engine.fetch.demand import Demand
from p2pcloopd.engine.fetch.fetcher import Fetcher
from p2pcloopd.engine.fetch.range_requests import Came
from p2pcloopd.engine.fetch.store import Store
from p2pcloopd.engine.fetch.tuning import Tuning

_Arguments = TypeVarTuple("_Arguments")

MAX_READ = 16 << 20
"""Bytes that one read may ask for."""

MAX_SENT = 1024
"""Exact ranges of which it is remembered who sent them: a reader complains at once."""

_NOT_THERE = (errno.ENODATA, errno.ENOENT)
"""What a read of a file tells that was cut short, or deleted."""

_FULL = (errno.ENOSPC, errno.EDQUOT)

Hold = Callable[[int], Awaitable[None]]
"""Waits until so many bytes may be taken into memory."""


async def hold_any(_size: int) -> None:
    """Let any bytes be taken at once (`Hold`)."""
    await trio.lowlevel.checkpoint()


class Owner(Protocol):
    """The torrent that is read, as far as a read needs it."""

    async def metadata(self) -> TorrentLayout:
        """Wait until the layout is known."""

    def want_metadata_later(self) -> None:
        """Have it fetched once the line has time for it; waits for nothing."""

    async def mend(self) -> None:
        """Raise or mend what the disk refused: before anything is fetched."""

    async def verify(self, pieces: range) -> list[int]:
        """Compare pieces with their hashes, and drop those that are wrong."""


class Reads:
    """The reads of one torrent."""

    def __init__(
        self, store: Store, fetcher: Fetcher, demand: Demand, tuning: Tuning, owner: Owner
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._demand = demand
        self._tuning = tuning
        self._owner = owner
        self._under_way: set[trio.Event] = set()
        self._sent: dict[tuple[int, int], tuple[str, Callable[[], None]]] = {}

    # --- any bytes --------------------------------------------------------------------------

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
        """Bytes of the content, which the reader is to verify. Errors: `Torrent.read`.

        Args:
            heal: what was answered here did not match its hash.
            ahead: no guest waits.
            exact: the bytes may be asked of a server as they are.
            hold: called before bytes of pieces are taken into memory, and after others were.
        """
        if heal:
            self._store.provisional.drop(offset, length)
            self._refuse(offset, length)
        elif (
            data := await self._provisional(offset, length, ahead=ahead, exact=exact)
        ) is not None:
            await hold(length)
            return data
        if ahead:
            return await self.read(offset, length, ahead=True)
        try:
            await self.fetch(offset, length, heal=heal)
        except StorageError as err:
            # On a full disk nothing is kept; what a server gives goes through memory alone.
            if err.errno not in _FULL:
                raise
            came = await self._ask_server(offset, length)
            if came is None:
                raise
            await hold(length)
            return came.data
        await hold(length)
        return await self.read(offset, length)

    async def _provisional(
        self, offset: int, length: int, *, ahead: bool, exact: bool
    ) -> bytes | None:
        """Bytes that are not verified; None where they are to be had by their pieces."""
        provisional, disk = self._store.provisional, self._store.disk
        if disk is not None and disk.has(offset, length):
            return None
        with nullcontext() if ahead else self._demand.waiting():
            # Where a request for its pieces is under way, the read waits for these: so peers are
            # asked, too, once the request is late.
            while exact and not self._fetcher.is_coming(offset, length):
                if (coming := provisional.claimed(offset, length)) is None:
                    break
                await coming.wait()
            data = await self.read_provisional(offset, length)
            if data is None and exact:
                data = await self._fetch_exact(offset, length)
        if data is not None and self._fetcher.ranges.servers.begins_metadata(offset):
            self._owner.want_metadata_later()
        return data

    async def _fetch_exact(self, offset: int, length: int) -> bytes | None:
        """Ask servers for what of a range is not here; None where it is to be had by its pieces."""
        gaps = self._store.provisional.gaps(offset, length)
        data = None
        for start, size in gaps:
            with self._store.provisional.claim(start, size):
                came = await self._ask_exact(start, size)
            if came is None:
                return None
            data = came.data
        return data if gaps == [(offset, length)] else await self.read_provisional(offset, length)

    async def _ask_exact(self, offset: int, length: int) -> Came | None:
        """Ask a server for bytes, and keep them; None where they are to be had by their pieces."""
        ranges = self._fetcher.ranges
        if self._store.disk is None:
            came = await self._ask_first(offset, length)
        elif self._fetcher.takes_exact_range(offset, length):
            self._store.changed.notify()  # its pieces are in part from now on
            came = await self._ask_server(offset, length)
            if came is None:
                ranges.exact.trip(trio.current_time())
                self._store.changed.notify()
        else:
            return None
        if came is not None:
            ranges.count(offset, came)
            self._store.provisional.keep(offset, came.data)
            self._sent[offset, length] = came.base, came.refuse
            if len(self._sent) > MAX_SENT:
                del self._sent[next(iter(self._sent))]
        return came

    def _refuse(self, offset: int, length: int) -> None:
        """Ask the server no more that sent bytes which a reader found wrong."""
        found = [at for at in self._sent if at[0] < offset + length and offset < sum(at)]
        senders = dict(self._sent.pop(at) for at in found)
        if len(senders) == 1:  # of several it cannot be told which
            senders.popitem()[1]()

    async def _ask_server(self, offset: int, length: int) -> Came | None:
        """Bytes of the server that answered last, however slow the line; None in silence."""
        ranges = self._fetcher.ranges
        servers = ranges.servers

        async def ask() -> Came | None:
            try:
                return await servers.get(offset, length)
            except P2pcloopError:
                return None  # a server keeps its own error, for the status

        return await ranges.silence.ends(ask)

    async def _ask_first(self, offset: int, length: int) -> Came | None:
        """Bytes of the first server that answers, unless the metadata is here before."""

        async def lose_patience() -> None:
            await trio.sleep(self._tuning.first_patience)
            try:
                await self._owner.metadata()
            except P2pcloopError:
                return  # the reader is told, once no server answers either
            nursery.cancel_scope.cancel()

        found = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose_patience)
            found = await self._fetcher.ranges.servers.get_first(offset, length)
            nursery.cancel_scope.cancel()
        return found

    async def read_provisional(self, offset: int, length: int) -> bytes | None:
        """Bytes of which some are provisional and the others in pieces that are here.

        Returns:
            What nothing vouches for; None where bytes are missing, or where none is provisional.

        Raises:
            StorageError, CorruptError: as for `read`.
        """
        provisional, disk = self._store.provisional, self._store.disk
        if not provisional.overlapping(offset, length):
            return None
        if disk is None or offset + length > disk.layout.total_size:
            return await provisional.read(offset, length)
        spans: list[tuple[bool, int, int]] = []
        for piece, first, size in disk.layout.spans_of(offset, length):
            whole = self._store.has(piece)
            if not whole and provisional.gaps(first, size):
                return None
            before = spans.pop()[1] if spans and spans[-1][0] == whole else first
            spans.append((whole, before, first + size - before))
        if all(whole for whole, _, _ in spans):
            return None
        found = []
        for whole, first, size in spans:
            part = await (self.read if whole else provisional.read)(first, size)
            if part is None:
                return None
            found.append(part)
        return b"".join(found)

    # --- verified bytes ---------------------------------------------------------------------

    async def read(
        self, offset: int, length: int, *, heal: bool = False, ahead: bool = False
    ) -> bytes:
        """See `Torrent.read`."""
        pieces, missing = await self._look(offset, length, heal=heal)
        try:
            return await self._read(offset, length, pieces, missing, ahead=ahead)
        except StorageError as err:
            # Files that were cut short or deleted behind our back, as `heal` finds them.
            if heal or err.errno not in _NOT_THERE:
                raise
        pieces, missing = await self._look(offset, length, heal=True)
        return await self._read(offset, length, pieces, missing, ahead=ahead)

    async def fetch(self, offset: int, length: int, *, heal: bool = False) -> None:
        """See `Torrent.fetch`."""
        _, missing = await self._look(offset, length, heal=heal)
        if missing:
            await self._fetch_pieces(missing, keep=False)

    async def _look(self, offset: int, length: int, *, heal: bool) -> tuple[range, list[int]]:
        """The pieces of a range, and which of them are not durable."""
        layout = await self._owner.metadata()
        if not (offset >= 0 and 0 < length <= MAX_READ and offset + length <= layout.total_size):
            raise UsageError(
                tr(
                    "bytes {offset} to {offset2} cannot be read: the torrent has {total_size}"
                    " bytes, a read at most {max_read}",
                    offset=offset,
                    offset2=offset + length,
                    total_size=layout.total_size,
                    max_read=MAX_READ,
                )
            )
        pieces = layout.pieces_of(offset, length)
        if heal:
            await self._owner.verify(pieces)
        return pieces, [piece for piece in pieces if not self._store.is_durable(piece)]

    async def _read(
        self, offset: int, length: int, pieces: range, missing: list[int], *, ahead: bool
    ) -> bytes:
        """Read a range, of whose pieces some were missing a moment ago."""
        stored = self._store.stored
        start = offset - pieces[0] * stored.layout.piece_length
        recent = self._fetcher.wants.recent(pieces)
        if recent is not None:
            await trio.lowlevel.checkpoint()
            return b"".join(recent)[start : start + length]
        if not missing:
            return await self._from_files(stored.content.read, offset, length)
        fetched = await self._fetch_pieces(missing, keep=True, ahead=ahead)
        data = [fetched.get(piece) or await self._read_piece(piece) for piece in pieces]
        return b"".join(data)[start : start + length]

    async def _fetch_pieces(
        self, missing: list[int], *, keep: bool, ahead: bool = False
    ) -> dict[int, bytes | None]:
        await self._owner.mend()
        return await self._fetcher.get(missing, keep=keep, ahead=ahead)

    async def _read_piece(self, piece: int) -> bytes:
        """Read a piece that was here a moment ago; it may have gone since."""
        while True:
            stored = self._store.stored
            if stored.have.has(piece, piece):
                return await self._from_files(stored.content.read_piece, piece)
            data = (await self._fetch_pieces([piece], keep=True))[piece]
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

    async def unread(self) -> None:
        """Wait until the reads of files that are under way now have ended."""
        for done in tuple(self._under_way):
            await done.wait()
