"""Decoded chunks that memory has no room for, in a temporary file.

To read a block from the page cache takes 2 µs; to decode its chunk of 64 KiB again takes 120 µs.
The file has no name, belongs to one process and ends with it. It is a ring: new chunks replace the
oldest. Each block is compared with a CRC-32 that was computed when its chunk had just been
verified. If the disk loses or changes the block, its chunk is decoded again.
"""

from __future__ import annotations

import logging
import os
import tempfile
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from isal.isal_zlib import crc32  # 0.13 µs a block; zlib's takes 1.1

from p2pcloop.units import BLOCK_SIZE

MAX_SIZE = 1 << 30
MAX_PLACES = 1 << 15
"""Chunks that it holds at most: each takes up to 600 bytes of memory for its entry."""

SHARE_OF_ROOM = 8
"""The file takes at most this part of the room that is free on the disk when it is made."""

_log = logging.getLogger(__name__)


class _Place(NamedTuple):
    offset: int
    size: int
    checks: array[int]


class SpillFile:
    """Decoded chunks by key; `close`, or the end of the process, frees the room."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        """Make no file yet: most images that are booted never need one.

        Args:
            folder: where the file is made.
            limit: bytes that it may take; None: a part of the free room.
        """
        self._folder = folder
        self._limit = limit
        self._file: IO[bytes] | None = None
        self._places: OrderedDict[int, _Place] = OrderedDict()
        self._end = 0

    def __contains__(self, key: int) -> bool:
        return key in self._places

    def put(self, key: int, data: memoryview) -> bool:
        """Keep a chunk of whole blocks; return False if that is not possible."""
        if self._limit == 0:
            return False
        try:
            file = self._file or self._open()
            offset = self._make_room(len(data))
            if offset is None:
                return False
            if os.pwrite(file.fileno(), data, offset) != len(data):
                raise OSError("it took a part only")
        except OSError as err:
            _log.warning("decoded chunks are no longer kept in %s: %s", self._folder, err)
            self._limit = 0
            self.close()
            return False
        self._places.pop(key, None)
        self._places[key] = _Place(offset, len(data), array("I", _checks(data)))
        if len(self._places) > MAX_PLACES:
            self._places.popitem(last=False)
        return True

    def read(self, key: int, start: int, length: int) -> memoryview | None:
        """Return bytes of a chunk; None if it is not here, is shorter, or went bad.

        Args:
            key: of the chunk.
            start: within it.
            length: at least 1.
        """
        place = self._places.get(key)
        if place is None or start + length > place.size or self._file is None:
            return None
        first, last = start // BLOCK_SIZE, -(-(start + length) // BLOCK_SIZE)
        size = (last - first) * BLOCK_SIZE
        try:
            data = os.pread(self._file.fileno(), size, place.offset + first * BLOCK_SIZE)
        except OSError:
            data = b""
        view = memoryview(data)
        if array("I", _checks(view)) != place.checks[first:last]:
            del self._places[key]
            return None
        skip = start - first * BLOCK_SIZE
        return view[skip : skip + length]

    def close(self) -> None:
        """Forget all chunks and free the room."""
        self._places.clear()
        self._end = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> IO[bytes]:
        file = self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        if self._limit is None:
            room = os.statvfs(file.fileno())
            self._limit = min(MAX_SIZE, room.f_bavail * room.f_frsize // SHARE_OF_ROOM)
        return file

    def _make_room(self, size: int) -> int | None:
        """Return a place for `size` bytes and forget the chunks there; None if too large."""
        assert self._limit is not None
        if size > self._limit:
            return None
        if self._end + size > self._limit:
            # Chunks from here on are older than all before: they are dropped first.
            self._forget(self._end, self._limit)
            self._end = 0
        offset = self._end
        self._end += size
        self._forget(offset, self._end)
        return offset

    def _forget(self, start: int, end: int) -> None:
        while self._places:
            oldest = next(iter(self._places))
            if not start <= self._places[oldest].offset < end:
                return
            del self._places[oldest]


def _checks(data: memoryview) -> Iterator[int]:
    return (crc32(data[at : at + BLOCK_SIZE]) for at in range(0, len(data), BLOCK_SIZE))
