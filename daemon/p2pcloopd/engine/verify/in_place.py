"""Watches files that are seeded in place, and stops serving one that has changed.

They belong to the user, who moves them, unplugs the disk that they are on, or writes to them; and
others may be able to write in their directory. So every few seconds, and whenever a reader asks,
each is looked at under its name (`Stored.look`). Where it is another file than the one that was
compared with its hashes, the swarm is left, all of it is compared again, and it is served once it
is right. No event would do: inotify tells nothing of NFS or of a disk that is unplugged.
"""

from __future__ import annotations

import logging
import math

import trio

from p2pcloop.errors import StorageError
from p2pcloopd.engine.disk.stored import Fault, Stored
from p2pcloopd.engine.fetch.fetcher import Fetcher
from p2pcloopd.engine.fetch.store import Store
from p2pcloopd.engine.fetch.tuning import Tuning

log = logging.getLogger(__name__)


class InPlace:
    """Those of one torrent.

    Args:
        lock: held while the membership in the swarm changes.
    """

    def __init__(self, store: Store, fetcher: Fetcher, lock: trio.Lock, tuning: Tuning) -> None:
        self._store = store
        self._fetcher = fetcher
        self._lock = lock
        self._tuning = tuning
        self._looking = trio.Lock()
        self._woken = trio.Event()
        self._told: Fault | None = None

    async def run(self) -> None:
        """Look at them every few seconds, for ever; a torrent of our own files needs none of it."""
        while True:
            self._woken = trio.Event()
            await self.look()
            disk = self._store.disk
            in_place = disk is not None and disk.in_place
            seconds = self._tuning.in_place_look if in_place else math.inf
            with trio.move_on_after(seconds):
                await self._woken.wait()

    def wake(self) -> None:
        """Look at them now: something was found wrong, or there are other files."""
        self._woken.set()

    async def look(self) -> None:
        """Look at them, compare what is to be compared, and serve them or not."""
        async with self._looking:
            disk = self._store.disk
            if disk is None or not disk.in_place:
                return
            # A file system that does not answer holds no task up.
            await trio.to_thread.run_sync(disk.look, abandon_on_cancel=True)
            if disk.fault is not None:
                await self._leave(disk)
            if disk.fault is Fault.UNCHECKED:
                await self._compare(disk)
            if disk.fault is None:
                await self._join(disk)
            if disk.fault is not self._told:
                self._told = disk.fault
                if disk.fault is None:
                    log.info("%s is served again", disk.layout.name)
                else:
                    log.error("%s", disk.error())

    async def _compare(self, disk: Stored) -> None:
        layout = disk.layout
        step = max(1, self._tuning.compare_step // layout.piece_length)
        log.info("%s", disk.error())
        try:
            stamps = await trio.to_thread.run_sync(disk.content.stamps)
            for first in range(0, layout.pieces, step):
                pieces = range(first, min(first + step, layout.pieces))
                if await trio.to_thread.run_sync(disk.wrong, pieces):
                    disk.found_wrong(stamps)
                    return
            await trio.to_thread.run_sync(disk.approve, stamps)
        except StorageError as err:
            disk.lose(err)

    async def _leave(self, disk: Stored) -> None:
        async with self._lock:
            if self._store.disk is disk and self._store.running:
                await self._fetcher.leave()
                self._store.changed.notify()

    async def _join(self, disk: Stored) -> None:
        async with self._lock:
            if self._store.disk is disk and not self._store.running:
                self._fetcher.join()
