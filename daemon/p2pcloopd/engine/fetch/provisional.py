"""Provisional ranges of a torrent: bytes that a reader was given before their pieces were here.

A server sent them by their exact range. They were not compared with a piece's hash. So they serve
readers of this node alone, which compare a chunk with its SHA-256; peers and HTTP clients are given
verified pieces only. They are here all the same: no operation asks for them again.

All changes are made on trio's thread, at once; one task writes them to the disk, in their order
(store/provisional_log.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from p2pcloop.store.intervals import Range, Ranges
from p2pcloop.store.provisional_log import MAX_BYTES, ProvisionalLog
from p2pcloopd.engine.fetch.demand import Demand
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.tasks import race


class Provisional:
    """The provisional ranges of one torrent, and those that are on their way here."""

    def __init__(
        self,
        directory: Path,
        demand: Demand,
        notify: Callable[[], None] = lambda: None,
        tuning: Tuning = TUNING,
    ) -> None:
        """Open what the disk has.

        Args:
            directory: the torrent's in the store.
            demand: tells whether readers wait.
            notify: called when there is more.
        """
        self._notify = notify
        self._log = ProvisionalLog(directory)
        self._demand = demand
        self._tuning = tuning
        self._ranges = Ranges()
        for span in self._log.ranges:
            self._ranges.add(*span)
        self._kept, self._kept_some = self.ranges, trio.Event()
        if self._kept:
            self._kept_some.set()
        self._fresh: dict[int, bytes] = {}
        self._forgotten: set[int] = set()
        self._claims: dict[Range, trio.Event] = {}
        self._disk = trio.Lock()
        self._changed, self._plenty = trio.Event(), trio.Event()
        self._closed = False

    # --- what is here -----------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of all ranges."""
        return self._ranges.size

    @property
    def room(self) -> int:
        """Bytes that would be kept yet."""
        return MAX_BYTES - self._ranges.size

    @property
    def ranges(self) -> list[Range]:
        """All of them, in order."""
        return list(self._ranges)

    def next(self, offset: int) -> Range | None:
        """The first range that begins at an offset or later."""
        return self._ranges.next(offset)

    def overlapping(self, offset: int, length: int) -> list[Range]:
        """Those that have a byte in common with a range."""
        return self._ranges.overlapping(offset, length)

    def gaps(self, offset: int, length: int) -> list[Range]:
        """What of a range is in none of them."""
        return self._ranges.gaps(offset, length)

    async def read(self, offset: int, length: int) -> bytes | None:
        """Bytes that lie in ranges; None where some are in none, or cannot be read any more."""
        if self.gaps(offset, length):
            return None
        found = []
        for start, size in self.overlapping(offset, length):
            data = await self._read_range(start)
            if data is None or len(data) != size:
                return None
            found.append(data[max(0, offset - start) : offset + length - start])
        return b"".join(found)

    async def _read_range(self, start: int) -> bytes | None:
        if (data := self._fresh.get(start)) is not None:
            return data
        async with self._disk:
            if start in self._forgotten or start in self._fresh:
                return self._fresh.get(start)
            data = await trio.to_thread.run_sync(self._log.read, start)
        if data is None and start not in self._fresh and self._ranges.overlapping(start, 1):
            self._forget(start)  # torn by a crash
        return data

    # --- changes ----------------------------------------------------------------------------

    def keep(self, offset: int, data: bytes) -> None:
        """Keep what of these bytes is in no range yet, where there is room; written soon."""
        for start, length in self.gaps(offset, len(data)):
            if length <= self.room and not self._closed:
                self._ranges.add(start, length)
                self._fresh[start] = data[start - offset :][:length]
                self._kept.append((start, length))
                self._kept_some.set()
                self._changed.set()
                self._notify()
        if sum(map(len, self._fresh.values())) >= self._tuning.write_bytes:
            self._plenty.set()

    async def take_kept(self) -> list[Range]:
        """Wait for ranges that were kept since the last call, and return them."""
        await self._kept_some.wait()
        kept, self._kept, self._kept_some = self._kept, [], trio.Event()
        return kept

    def drop(self, offset: int, length: int) -> None:
        """Forget every range that has a byte in common with these."""
        for start, _ in self.overlapping(offset, length):
            self._forget(start)

    def clear(self) -> None:
        """Forget all ranges."""
        self.drop(0, 1 << 64)

    def close(self) -> None:
        """Write no more: the torrent is about to be removed."""
        self._closed = True
        self._fresh.clear()

    def _forget(self, start: int) -> None:
        self._ranges.remove(start)
        self._fresh.pop(start, None)
        self._forgotten.add(start)
        self._changed.set()

    # --- what is on its way -----------------------------------------------------------------

    @contextmanager
    def claim(self, offset: int, length: int) -> Iterator[None]:
        """Say that these bytes are on their way, while the context lasts."""
        done = trio.Event()
        claimed = self._claims.setdefault((offset, length), done) is done
        try:
            yield
        finally:
            if claimed:
                del self._claims[offset, length]
            done.set()

    def claimed(self, offset: int, length: int) -> trio.Event | None:
        """Set once bytes of a range that are on their way came, or failed; None where none are."""
        for (start, size), done in self._claims.items():
            if start < offset + length and offset < start + size:
                return done
        return None

    def touches(self, offset: int, length: int) -> bool:
        """Whether bytes of a range are here, or on their way by themselves."""
        overlaps = self._ranges.overlaps(offset, length)
        return overlaps or self.claimed(offset, length) is not None

    # --- the disk ---------------------------------------------------------------------------

    async def flush(self) -> None:
        """Have all changes on the disk, as far as it takes them."""
        async with self._disk:
            await self._write()

    async def run(self) -> None:
        """Bring changes to the disk, for ever; what is left at the end, too."""
        try:
            while True:
                await self._changed.wait()
                with trio.move_on_after(self._tuning.write_after):
                    await race(self._plenty, self._quiet)
                await self.flush()
        finally:
            with trio.CancelScope(shield=True):
                await self.flush()

    async def _quiet(self) -> None:
        await self._demand.quiet(self._tuning.write_quiet, trio.current_time())

    async def _write(self) -> None:
        """Forget and write what there is to be; the lock is held."""
        # `run` waits for an event that is not set yet: only one that is set is replaced.
        if self._changed.is_set():
            self._changed = trio.Event()
        if self._plenty.is_set():
            self._plenty = trio.Event()
        forgotten, fresh = self._forgotten, self._fresh.copy()
        self._forgotten = set()
        if self._closed or not (forgotten or fresh):
            return
        written = await trio.to_thread.run_sync(_carry_out, self._log, forgotten, fresh)
        for start in written:
            if self._fresh.get(start) is fresh[start]:
                del self._fresh[start]
        while sum(map(len, self._fresh.values())) > self._tuning.unwritten:
            self._forget(next(iter(self._fresh)))


def _carry_out(log: ProvisionalLog, forgotten: set[int], fresh: dict[int, bytes]) -> list[int]:
    """In a worker thread: forget and write; return what was written."""
    log.forget(forgotten)
    try:
        log.keep(fresh)
    except OSError:
        kept = {start for start, _ in log.ranges}
        return [start for start in fresh if start in kept]
    return list(fresh)
