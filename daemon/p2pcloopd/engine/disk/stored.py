"""The part of a torrent's content that is on this disk, and how more of it becomes durable."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from enum import Enum
from itertools import islice
from pathlib import Path

from p2pcloop.errors import CorruptError, NotHereError, StorageError
from p2pcloop.store.in_place import HeldFile, Stamp, load_stamps, save_stamps
from p2pcloop.words import tr
from p2pcloopd.engine.disk.content import Content, links
from p2pcloopd.engine.disk.copies import MAX_COPIES, Places, load_copies, take_over
from p2pcloopd.engine.disk.holes import give_back, written
from p2pcloopd.engine.disk.metainfo import Metainfo, TorrentLayout
from p2pcloopd.engine.disk.record import Record

log = logging.getLogger(__name__)

COMPARED_SECONDS = 60
"""So long it counts that a piece was compared with its hash: the same ones are asked for often."""

RECOVERED_BYTES = 64 << 20
"""Compared with their hashes after a crash, in 0.1 s: eight times what arrives between two saves,
and not all of a torrent on a file system that does not tell holes."""

_SMALL = 128 << 10
"""Bytes that are read and compared without a thread: 0.15 ms."""


class Fault(Enum):
    """Why files that are seeded where they lie are not served."""

    GONE = "gone"
    CHANGED = "changed"
    UNCHECKED = "checking"


class Stored:
    """Content, have bits and metadata of one torrent. Its methods block on the disk.

    Attributes:
        in_place: whether files of it lie elsewhere: they are read and never written.
        fault: why those are not served, or None where they are; `look` and `compare` set it.
        since: when the metadata came, in seconds since 1970.

    Raises:
        StorageError: the disk refused; so do the methods.
    """

    def __init__(self, record: Record, info_hash: bytes, info: bytes, meta: Metainfo) -> None:
        self.info = info
        self.layout: TorrentLayout = meta.layout
        self.content = Content(record.data, meta.layout)
        self.in_place = bool(self.content.foreign())
        self.have = record.open_have(info_hash, meta.layout, self.content)
        self.since = record.since()
        self.fault: Fault | None = None
        self._why = ""
        self._closed = False
        self._meta = meta
        self._record = record
        self._right = load_stamps(record.directory) if self.in_place else {}
        self._wrong: list[dict[str, Stamp]] = []
        self._compared: dict[int, float] = {}
        self._compared_as: list[Stamp | None] = []
        if self.in_place:
            self.look()
        elif record.mark_open() and not self.have.complete():
            self._recover()

    def _recover(self) -> None:
        """After a crash: set the bits of pieces that are right in the files, and were not saved."""
        count = self.have.count
        try:
            self.save(self._unsaved())
        except StorageError as err:
            log.warning("%s: what was not saved is fetched again: %s", self.layout.name, err)
        if self.have.count > count:
            found = self.have.count - count
            log.info("%s: %d pieces were here and not saved", self.layout.name, found)

    def _unsaved(self) -> list[int]:
        """Pieces without a bit in which the files have no hole, up to `RECOVERED_BYTES`."""
        length, total = self.layout.piece_length, self.layout.total_size
        found = (
            piece
            for start, end in written(self.content, self.layout)
            for piece in range(-(-start // length), -(-end // length))
            if min((piece + 1) * length, total) <= end and not self.have.has(piece, piece)
        )
        return list(islice(found, RECOVERED_BYTES // length or 1))

    def usable(self) -> bool:
        """Whether everything is here, with nothing known to be wrong. Looks at the disk."""
        if self.in_place:
            return self.fault is None and self._see()[0] is None and self.have.complete()
        return self.have.complete() and self.content.whole()

    def look(self) -> None:
        """See whether the files that lie elsewhere are what they were when they were compared.

        Where they are gone or changed, a copy takes over that is neither as far as is known.
        """
        self.fault, files = self._see()
        if self.fault in (Fault.GONE, Fault.CHANGED) and self._turn_to_copy():
            self.fault, files = self._see()
        if self.fault is not None or self.content.stamps() != self._right:
            self.content.hold(files)
            if self._closed:  # meanwhile, by another thread
                self.content.hold({})

    def _see(self) -> tuple[Fault | None, dict[Path, HeldFile]]:
        """What is to be said of the files under their names, and these files."""
        try:
            files = self.content.find()
            now = self.content.stamps(files)
        except StorageError as err:
            self._why = str(err)
            return Fault.GONE, {}
        sizes = self.content.sizes()
        if now in self._wrong or any(stamp.size != sizes[name] for name, stamp in now.items()):
            return Fault.CHANGED, files
        return None if now == self._right else Fault.UNCHECKED, files

    def _turn_to_copy(self) -> bool:
        """Use a copy, where there is one that may be right; see copies.py."""
        directory = self._record.directory
        try:
            now = links(self._record.data)
            for copy in load_copies(directory):
                if copy.keys() == now.keys() and copy != now and self._may_be_right(copy):
                    log.warning("%s; a copy takes over", self.error())
                    take_over(directory, now, copy)
                    return True
        except StorageError as err:
            log.warning("no copy of %s can take over: %s", self.layout.name, err)
        return False

    def _may_be_right(self, copy: Places) -> bool:
        """Whether the files of a copy are there, have their sizes, and were not found wrong."""
        sizes = self.content.sizes()
        try:
            stamps = {str(name): HeldFile(place).stamp() for name, place in copy.items()}
        except StorageError:
            return False
        right = all(stamp.size == sizes.get(name) for name, stamp in stamps.items())
        return right and stamps not in self._wrong

    def approve(self, stamps: dict[str, Stamp]) -> None:
        """Serve the files that lie elsewhere: all pieces were compared, and right.

        Args:
            stamps: of the files before the first piece was compared. Files that were written to
                since are compared again.
        """
        self.look()
        if self.fault is Fault.UNCHECKED and self.content.stamps() == stamps:
            save_stamps(self._record.directory, stamps)
            self._right = stamps
            self.fault = None

    def found_wrong(self, stamps: dict[str, Stamp]) -> None:
        """Note that files that lie elsewhere do not hold what they must, while they have these
        stamps. They are those of before the comparison: files may be put right during it."""
        self._wrong = [*self._wrong, stamps][-MAX_COPIES - 1 :]
        self.fault = Fault.CHANGED

    def lose(self, error: StorageError) -> None:
        """Note that files that lie elsewhere cannot be read."""
        self._why, self.fault = str(error), Fault.GONE

    def save(self, pieces: list[int]) -> list[int]:
        """Make pieces durable and set their bits; return those that the files do not hold."""
        first = not self.have.count
        wrong = self.wrong(pieces)
        self.content.sync()
        if first:
            self.content.sync_names(self._record.directory)
        self.have.add(set(pieces).difference(wrong))
        return wrong

    def has(self, offset: int, length: int) -> bool:
        """Whether these bytes of the content are durable here, as far as is known."""
        if self.fault or offset < 0 or offset + length > self.layout.total_size:
            return False
        pieces = self.layout.pieces_of(offset, length) if length else range(0)
        return not pieces or self.have.has(pieces[0], pieces[-1])

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes that are durable.

        Raises:
            NotHereError: they are not, or were let go of meanwhile.
        """
        data = self.content.read(offset, length) if self.has(offset, length) else b""
        if len(data) == length and self.has(offset, length):
            return data
        raise NotHereError(
            tr(
                "bytes {offset} to {offset2} are not here any more",
                offset=offset,
                offset2=offset + length,
            )
        )

    def read_right(self, offset: int, length: int, *, now: bool = False) -> bytes | None:
        """The same for others: of pieces that were compared with their hashes just now.

        A comparison counts for `COMPARED_SECONDS`, unless the files were written to.

        Args:
            now: None where something has to wait for the disk, or is much work.

        Raises:
            NotHereError: as of `read`.
            CorruptError: a piece is wrong.
        """
        if not length or not self.has(offset, length):
            return None if now else self.read(offset, length)
        pieces = self.layout.pieces_of(offset, length)
        stale = self._stale(pieces)
        start, end = offset, offset + length
        if stale:
            start = pieces[0] * self.layout.piece_length
            end = min(self.layout.total_size, (pieces[-1] + 1) * self.layout.piece_length)
        if now:
            cached = self.content.read_now(start, end - start) if end - start <= _SMALL else None
            if cached is None or not self.has(offset, length):
                return None
            data = cached
        else:
            data = self.read(start, end - start)
        for piece in stale:
            at = piece * self.layout.piece_length - start
            if not self.is_right(piece, data[at : at + self.layout.piece_size(piece)]):
                raise CorruptError(
                    tr(
                        "piece {piece} of {layout} is wrong on this disk",
                        piece=piece,
                        layout=self.layout.name,
                    )
                )
        self._compared.update(dict.fromkeys(stale, time.monotonic()))
        return data[offset - start :][:length]

    def _stale(self, pieces: range) -> list[int]:
        """Those of pieces that are to be compared with their hashes before they leave."""
        stamps = self.content.all_stamps()
        if stamps != self._compared_as:
            self._compared_as, self._compared = stamps, {}
        since = time.monotonic() - COMPARED_SECONDS
        return [piece for piece in pieces if self._compared.get(piece, -math.inf) < since]

    def is_right(self, piece: int, data: bytes) -> bool:
        """Whether this is the content of a piece."""
        return self._meta.matches(piece, data)

    def wrong(self, pieces: Iterable[int]) -> list[int]:
        """Those of `pieces` that the files do not hold right."""
        return self.content.wrong_pieces(self._meta, pieces)

    def drop_wrong(self, pieces: Iterable[int]) -> list[int]:
        """Clear the bits of those of `pieces` that are wrong on the disk, and return them.

        Where some are, those behind the ends of files that were cut short go with them: all that
        is found wrong at once costs one departure from the swarm.

        Raises:
            CorruptError: some are, and the files are not ours to write.
        """
        stamps = self.content.stamps()
        wrong = set(self.wrong(piece for piece in pieces if self.have.has(piece, piece)))
        if wrong and self.in_place:
            self.found_wrong(stamps)
            raise self.error()
        if wrong:
            for offset, length in self.content.lacking():
                beyond = self.layout.pieces_of(offset, length)
                wrong.update(piece for piece in beyond if self.have.has(piece, piece))
        self.have.drop(*wrong)
        return sorted(wrong)

    def evict(self, pieces: Iterable[int]) -> None:
        """Clear the bits of pieces, durably: from now on they are fetched again."""
        self.have.drop(*pieces)

    def give_back(self) -> None:
        """Give back the room of all pieces that are not here."""
        give_back(self.content, self.layout, self.have.to_list())

    def close(self, *, saved: bool) -> None:
        """Let go of the files; `saved` where nothing that arrived is lost by that."""
        self.have.close()
        # Not when this is collected: the disk that they are on may be unplugged now.
        self._closed = True
        self.content.hold({})
        if saved:
            self._record.mark_closed()

    def error(self) -> CorruptError:
        """What to say of files that are not served."""
        files = ", ".join(str(path.readlink()) for path in self.content.foreign())
        again = "put the old file back, or seed it again"
        match self.fault:
            case Fault.GONE:
                return CorruptError(
                    tr(
                        "{files}, which is seeded from there, is gone: {why}",
                        files=files,
                        why=self._why,
                    ),
                    hint=again,
                )
            case Fault.UNCHECKED:
                return CorruptError(
                    tr("{files} is being compared with its hashes again", files=files),
                    hint="try again",
                )
            case _:
                return CorruptError(
                    tr("{files} changed since it was seeded", files=files), hint=again
                )
