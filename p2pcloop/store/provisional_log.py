"""Provisional ranges on disk: bytes of a torrent whose pieces are not complete yet.

`torrents/<info hash>/parts` is a log (docs/formats/parts.md): a header, then each range with its
bytes. Nothing is synced: a range that a crash tears fails its checksum or ends the log, and is
fetched again. A forgotten range is marked, and its room freed as a hole.

All methods block on the disk. An object has one user, who calls it from one thread at a time.
"""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from p2pcloop.formats.holes import punch_hole
from p2pcloop.store.intervals import Range

MAX_BYTES = 64 << 20
"""Bytes of all provisional ranges of a torrent together; later ones are not kept."""

FILE_NAME = "parts"
"""The name of the file."""

_HEADER = struct.Struct("<8sI")
_RECORD = struct.Struct("<B3xIQII")
_CHECKED = struct.Struct("<IQI")
_MAGIC = _HEADER.pack(b"P2PCPART", 1)
_HERE, _FORGOTTEN = 1, 0


class ProvisionalLog:
    """The log of one torrent.

    Errors of the disk only lose ranges: `keep` raises them, the other methods do not.
    """

    def __init__(self, torrent: Path) -> None:
        """`torrent` is the torrent's directory in the store. The file is made by `keep`."""
        self._path = torrent / FILE_NAME
        self._places: dict[int, tuple[int, int, int]] = {}
        self._end = 0
        with suppress(OSError):
            self._open()

    @property
    def ranges(self) -> list[Range]:
        """The ranges that are kept, in order."""
        return sorted((offset, length) for offset, (_, length, _) in self._places.items())

    def read(self, offset: int) -> bytes | None:
        """The bytes of the range that begins here; None if they are not here, or torn."""
        if offset not in self._places:
            return None
        place, length, check = self._places[offset]
        with suppress(OSError), open(self._path, "rb") as file:
            file.seek(place)
            data = file.read(length)
            if len(data) == length and zlib.crc32(data) == check:
                return data
        return None

    def keep(self, ranges: Mapping[int, bytes]) -> None:
        """Keep ranges, by offset; none may overlap one that is kept.

        Raises:
            OSError: the system refused; ranges that were written before are kept.
        """
        if not ranges:
            return
        with open(self._path, "r+b" if self._end else "wb", buffering=0) as file:
            try:
                if not self._end:
                    self._end = _write(file.fileno(), _MAGIC, 0)
                for offset, data in ranges.items():
                    self._append(file.fileno(), offset, data)
            except OSError:
                os.ftruncate(file.fileno(), self._end)
                raise

    def forget(self, offsets: Iterable[int]) -> None:
        """Forget the ranges that begin here; the file is deleted with the last range."""
        places = [self._places.pop(offset) for offset in offsets if offset in self._places]
        with suppress(OSError):
            if not self._places:
                self._end = 0
                self._path.unlink(missing_ok=True)
            elif places:
                with open(self._path, "r+b", buffering=0) as file:
                    for place, length, _ in places:
                        os.pwrite(file.fileno(), bytes([_FORGOTTEN]), place - _RECORD.size)
                        punch_hole(file.fileno(), place, length)

    def _append(self, fd: int, offset: int, data: bytes) -> None:
        check = zlib.crc32(data)
        checked = zlib.crc32(_CHECKED.pack(len(data), offset, check))
        record = _RECORD.pack(_HERE, len(data), offset, check, checked)
        place = self._end + _RECORD.size
        self._end = _write(fd, record + data, self._end)
        self._places[offset] = place, len(data), check

    def _open(self) -> None:
        if self._path.is_dir():  # before there was a log: a file for each range
            shutil.rmtree(self._path, ignore_errors=True)
        with open(self._path, "r+b", buffering=0) as file:
            if os.pread(file.fileno(), _HEADER.size, 0) == _MAGIC:
                self._end = _HEADER.size
                for state, offset, place in _records(file.fileno()):
                    self._end = place[0] + place[1]
                    if state == _HERE:
                        self._places[offset] = place
            os.ftruncate(file.fileno(), self._end)


def kept_ranges(torrent: Path) -> list[Range]:
    """The ranges that the log of a torrent holds, in order; for readers who do not own it."""
    with suppress(OSError), open(torrent / FILE_NAME, "rb", buffering=0) as file:
        if os.pread(file.fileno(), _HEADER.size, 0) == _MAGIC:
            records = _records(file.fileno())
            return sorted((offset, at[1]) for state, offset, at in records if state == _HERE)
    return []


def _records(fd: int) -> Iterator[tuple[int, int, tuple[int, int, int]]]:
    """Each record up to the first torn one: state, offset, (place, length, checksum)."""
    size, at = os.fstat(fd).st_size, _HEADER.size
    while len(head := os.pread(fd, _RECORD.size, at)) == _RECORD.size:
        state, length, offset, check, checked = _RECORD.unpack(head)
        place = at + _RECORD.size
        at = place + length
        if zlib.crc32(_CHECKED.pack(length, offset, check)) != checked or at > size or not length:
            return
        yield state, offset, (place, length, check)


def _write(fd: int, data: bytes, at: int) -> int:
    """Write all; return where it ends."""
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written
    return at
