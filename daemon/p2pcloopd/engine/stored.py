"""The part of a torrent's content that is on this disk, and how more of it becomes durable."""

from __future__ import annotations

from collections.abc import Iterable

from p2pcloop.errors import CorruptError, NotHereError
from p2pcloopd.engine.content import Content
from p2pcloopd.engine.holes import give_back
from p2pcloopd.engine.metainfo import Metainfo, TorrentLayout
from p2pcloopd.engine.record import Record


class Stored:
    """Content, have bits and metadata of one torrent. Its methods block on the disk.

    Attributes:
        changed: a file that is seeded where it lies was found wrong since the torrent was opened.
        since: when the metadata came, in seconds since 1970.

    Raises:
        CorruptError: a file that is seeded where it lies is gone or has another size.
        StorageError: the disk refused; so do the methods.
    """

    def __init__(self, record: Record, info_hash: bytes, info: bytes, meta: Metainfo) -> None:
        self.info = info
        self.layout: TorrentLayout = meta.layout
        self.content = Content(record.data, meta.layout)
        self.have = record.open_have(info_hash, meta.layout, self.content)
        self.changed = False
        self.since = record.since()
        self._meta = meta
        self._record = record
        if self.in_place and not self.usable():
            self.have.close()
            raise self.changed_error()

    @property
    def in_place(self) -> bool:
        """Whether files of it lie elsewhere: they are read and never written."""
        return bool(self.content.foreign())

    def usable(self) -> bool:
        """Whether everything is here, with nothing known to be wrong."""
        return not self.changed and self.have.complete() and self.content.whole()

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
        if self.changed or offset < 0 or offset + length > self.layout.total_size:
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
        raise NotHereError(f"bytes {offset} to {offset + length} are not here any more")

    def read_now(self, offset: int, length: int) -> bytes | None:
        """The same where nothing has to wait for the disk; None where it does, or they are not."""
        data = self.content.read_now(offset, length) if self.has(offset, length) else None
        return data if data and len(data) == length and self.has(offset, length) else None

    def is_right(self, piece: int, data: bytes) -> bool:
        """Whether this is the content of a piece."""
        return self._meta.matches(piece, data)

    def wrong(self, pieces: Iterable[int]) -> list[int]:
        """Those of `pieces` that the files do not hold right."""
        return self.content.wrong_pieces(self._meta, pieces)

    def drop_wrong(self, pieces: Iterable[int]) -> list[int]:
        """Clear the bits of those of `pieces` that are wrong on the disk, and return them.

        Raises:
            CorruptError: some are, and the files are not ours to write.
        """
        wrong = self.wrong(piece for piece in pieces if self.have.has(piece, piece))
        if wrong and self.in_place:
            self.changed = True
            raise self.changed_error()
        self.have.drop(*wrong)
        return wrong

    def evict(self, pieces: Iterable[int]) -> None:
        """Clear the bits of pieces, durably: from now on they are fetched again."""
        self.have.drop(*pieces)

    def give_back(self) -> None:
        """Give back the room of all pieces that are not here."""
        give_back(self.content, self.layout, self.have.to_list())

    def changed_error(self) -> CorruptError:
        """What to say of files that are not what they were when they were seeded."""
        files = ", ".join(str(path.readlink()) for path in self.content.foreign())
        return CorruptError(
            f"{files} changed since it was seeded", hint="put the old file back, or seed it again"
        )
