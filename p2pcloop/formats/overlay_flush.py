"""The order in which an overlay's bytes become durable: data first, then the states that name it.

Why this is right at every instant: docs/formats/overlay.md, "Crashes".
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from p2pcloop.errors import StorageError
from p2pcloop.formats.overlay_file import OverlayFile
from p2pcloop.formats.overlay_header import HEADER_SIZE, PAGE_SIZE
from p2pcloop.formats.overlay_states import StateTable, unpack_page
from p2pcloop.words import tr


class Flusher:
    """Writes the state table to the file. One thread writes and prepares; any thread may flush.

    After a failed fdatasync the state of the disk is unknown: the kernel reports such an error once
    and then treats the lost pages as written. From then on `check` and every flush raise.

    Attributes:
        writes: how many data writes have returned; the writing thread counts them here.
    """

    def __init__(self, file: OverlayFile, table: StateTable) -> None:
        """Flush `table` to its place in `file`."""
        self.writes = 0
        self._file = file
        self._table = table
        self._snapshot_lock = threading.Lock()  # guards the next one
        self._snapshots: dict[int, bytes] = {}  # pages of the table that wait for a flush, packed
        self._flush_lock = threading.Lock()  # one flush at a time; guards the next two
        # Not 0: an earlier process may have died before it synced bytes that this one reads. The
        # first flush finds them in the page cache and makes them durable.
        self._synced_writes = -1
        self._failed = False

    def check(self) -> None:
        """Refuse to go on after a failed fdatasync.

        Raises:
            StorageError: (EIO) there was one.
        """
        if self._failed:
            raise StorageError(
                tr(
                    "{path}: an earlier flush failed, so what is on its disk is not known",
                    path=self._file.path,
                ),
                errno=errno.EIO,
                hint="check the disk and boot again: all that was flushed before that is there",
            )

    def prepare(self) -> Callable[[], None]:
        """Copy the pages changed so far and return the call that makes them durable.

        A state that is set later is not included: its page is written only by a flush whose first
        fdatasync comes after its data.
        """
        changed = self._table.take_changed()
        with self._snapshot_lock:
            self._snapshots.update(changed)
        writes = self.writes
        return lambda: self._flush(writes)

    def _flush(self, writes: int) -> None:
        """Make at least the first `writes` data writes and all waiting snapshots durable.

        It takes all waiting pages, not only those that its own `prepare` copied. So a late flush
        cannot write an old page over a newer one, and one flush can do the work of several.
        """
        with self._flush_lock:
            self.check()
            with self._snapshot_lock:
                pages, self._snapshots = self._snapshots, {}
            noted = self.writes  # all of these have returned, so the sync below takes them
            if not pages and self._synced_writes >= writes:
                return
            try:
                self._sync()
                for page in sorted(pages):
                    self._file.write(HEADER_SIZE + page * PAGE_SIZE, [unpack_page(pages[page])])
                if pages:
                    self._sync()
            except BaseException:
                with self._snapshot_lock:
                    self._snapshots = pages | self._snapshots  # a newer snapshot wins
                raise
            self._synced_writes = noted

    def _sync(self) -> None:
        try:
            self._file.sync()
        except StorageError:
            self._failed = True
            raise

    def close(self) -> None:
        """Wait for a running flush, then close the file; a later flush fails (EBADF)."""
        with self._flush_lock:
            self._file.close()
