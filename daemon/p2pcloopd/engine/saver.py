"""Makes arrived pieces durable, and recovers after errors of the disk."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Collection

import trio

from p2pcloop.errors import CorruptError, StorageError
from p2pcloopd.engine.fetch.fetcher import Fetcher
from p2pcloopd.engine.fetch.store import Store
from p2pcloopd.engine.fetch.tuning import Tuning

log = logging.getLogger(__name__)


class Saver:
    """Brings one torrent's arrived pieces to the disk.

    libtorrent cannot be told that a piece it has is not here after all: then the swarm is left and
    joined again with what is durable. Readers that wait do not notice.

    Attributes:
        lock: held while the files, the have bits or the membership in the swarm change.
        on_saved: called when more has become durable.
    """

    def __init__(self, info_hash: bytes, store: Store, fetcher: Fetcher, tuning: Tuning) -> None:
        self.lock = trio.Lock()
        self.on_saved: Callable[[], None] = lambda: None
        self._name = info_hash.hex()
        self._store = store
        self._fetcher = fetcher
        self._tuning = tuning
        self._error: StorageError | None = None
        self._error_at = 0.0

    async def run(self) -> None:
        """Save what arrives, for ever."""
        while True:
            await self._store.wait_due()
            await self.save()

    async def save(self) -> None:
        """Make every piece that has arrived durable. An error of the disk goes to the readers."""
        async with self.lock:
            batch = await self._store.flush()
            if not batch:
                return
            try:
                wrong = await trio.to_thread.run_sync(self._store.stored.save, batch)
            except StorageError as err:
                self.on_storage_error(err)
                return
            self._store.settle(batch)
            if wrong:
                log.warning("torrent %s: %d pieces did not reach the disk", self._name, len(wrong))
                await self._rejoin()
            self._store.changed.notify()
        self.on_saved()

    async def evict(self, pieces: Collection[int], unread: Callable[[], Awaitable[None]]) -> bool:
        """Give back the room of pieces, and of what holds no piece that is here.

        Their bits are cleared durably before: a crash at any instant loses nothing else and leaves
        no bit that says too much. Readers go on: what they lack is fetched again.

        Args:
            pieces: may be empty.
            unread: waits for those who read the files at that moment.

        Returns:
            False, and nothing happened, where a reader waits for data of this torrent, or files
            of it are not ours alone.

        Raises:
            StorageError: the disk refused.
        """
        await self.save()
        async with self.lock:
            if not self._fetcher.evictable():
                return False
            stored = self._store.stored
            with trio.CancelScope(shield=True):
                await self._fetcher.leave()
                try:
                    await trio.to_thread.run_sync(stored.evict, pieces)
                    await unread()
                    await trio.to_thread.run_sync(stored.give_back)
                finally:
                    self._fetcher.join()
        return True

    async def verify(self, pieces: Collection[int]) -> list[int]:
        """Compare those of `pieces` that are here with their hashes; drop and return wrong ones.

        Raises:
            StorageError: the disk refused.
            CorruptError: a file seeded where it lies changed since.
        """
        async with self.lock:
            stored = self._store.stored
            try:
                wrong = await trio.to_thread.run_sync(stored.drop_wrong, pieces)
            except CorruptError:
                await self._fetcher.leave()  # nothing of such files is served
                raise
            if wrong:
                log.warning(
                    "torrent %s: pieces %s are wrong on the disk and fetched again",
                    self._name,
                    wrong,
                )
                await self._rejoin()
        return wrong

    async def mend(self) -> None:
        """After an error of the disk: raise it again for a moment, then begin anew.

        Raises:
            StorageError: the error.
        """
        if self._error is None:
            return
        if trio.current_time() - self._error_at < self._tuning.disk_retry:
            raise StorageError(
                self._error.message, errno=self._error.errno or errno.EIO, hint=self._error.hint
            )
        async with self.lock:
            if self._error is not None:
                self._error = None
                await self._rejoin()

    async def rejoin(self) -> None:
        """Leave the swarm and join it again, with what has arrived; not where it is left already.

        An error of the disk goes to the readers.
        """
        await self.save()
        async with self.lock:
            if self._store.running:
                await self._rejoin()

    @property
    def broken(self) -> bool:
        """Whether the disk refused and it was not tried again yet."""
        return self._error is not None

    def on_storage_error(self, error: StorageError) -> None:
        """Tell all who wait; the next who asks tries again, after a moment."""
        if self._error is None:  # the first error is the cause, others follow from it
            log.error("torrent %s: %s", self._name, error)
            self._error, self._error_at = error, trio.current_time()
        self._fetcher.fail(self._error)

    def forget_error(self) -> None:
        """Begin anew: other content lies there now."""
        self._error = None

    async def _rejoin(self) -> None:
        with trio.CancelScope(shield=True):  # a caller who goes away must not leave it half done
            await self._fetcher.leave()
            self._fetcher.join()
