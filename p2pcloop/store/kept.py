"""Decoded chunks that are kept from boot to boot: `kept/<image id hex>`, see docs/formats/kept.md.

A boot reads the chunks that the boot before has read. To read one here and compare it with its
SHA-256 takes a quarter of the time that decoding it takes. Nothing depends on these files: what is
missing or wrong in one is decoded from its pack.

The block servers of one image share its file: what it has they need not hold in memory
(image/chunks.py).
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import tempfile
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from p2pcloop.store.folder_lock import locked_folder
from p2pcloop.store.home import Home

MAX_SIZE: Final = 64 << 20
"""Bytes of the chunks of one image."""

MAX_IMAGES: Final = 4
"""Files in a home; those that were unused for longest are deleted."""

SHARE_OF_ROOM: Final = 8
"""A file takes at most this part of the room that is free on the disk."""

_MAGIC = b"P2PCKEPT"
_VERSION = 1
_HEADER = struct.Struct("<8sII")
_ENTRY = struct.Struct("<32sQI")
_MAX_CHUNKS = 1 << 16

_log = logging.getLogger(__name__)


class KeptChunks:
    """The kept chunks of an image, by their ids; none if there are none, or the file is damaged.

    Attributes:
        size: bytes of their contents.
    """

    def __init__(self, home: Home, image_id: bytes) -> None:
        """Open the file, which counts as a use of it."""
        self._places: dict[bytes, tuple[int, int]] = {}
        self._fd = -1
        self._path = kept_path(home, image_id)
        self._open()

    def __contains__(self, chunk_id: bytes) -> bool:
        return chunk_id in self._places

    def read(self, chunk_id: bytes, size: int) -> bytes | None:
        """Return the content of a chunk, verified; None if it is not here, or wrong.

        Args:
            chunk_id: its SHA-256.
            size: bytes of its content.
        """
        data = self._read(chunk_id)
        if data is None:
            return None
        if len(data) == size and hashlib.sha256(data).digest() == chunk_id:
            return data
        del self._places[chunk_id]
        return None

    @property
    def size(self) -> int:
        return sum(size for _, size in self._places.values())

    def refresh(self) -> None:
        """Open the file that has been kept since, if there is one. What was kept before may be
        dropped in it, for want of room."""
        with suppress(OSError):
            if self._fd < 0 or not os.path.samestat(os.fstat(self._fd), self._path.stat()):
                self.close()
                self._open()

    def lacking(self, chunks: Iterable[tuple[bytes, memoryview]]) -> int:
        """How many bytes of `chunks` (id, content) are not kept."""
        return sum(len(content) for chunk_id, content in chunks if chunk_id not in self)

    def joined(self, chunks: Iterable[tuple[bytes, memoryview]]) -> list[tuple[bytes, memoryview]]:
        """Put `chunks` (id, content) before what is kept, as far as `MAX_SIZE` allows."""
        found, room = dict(chunks), MAX_SIZE
        for chunk_id in self._places:
            if chunk_id not in found and (data := self._read(chunk_id)) is not None:
                found[chunk_id] = memoryview(data)
        fitting: list[tuple[bytes, memoryview]] = []
        for chunk_id, content in found.items():
            room -= len(content)
            if room < 0 or len(fitting) == _MAX_CHUNKS:
                break
            fitting.append((chunk_id, content))
        return fitting

    def close(self) -> None:
        """Close the file."""
        self._places.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._places = _read_places(self._fd)
            os.utime(self._fd)
        except OSError as err:
            _log.debug("no kept chunks: %s", err)

    def _read(self, chunk_id: bytes) -> bytes | None:
        place = self._places.get(chunk_id)
        if place is None:
            return None
        with suppress(OSError):
            return os.pread(self._fd, place[1], place[0])
        return None


def kept_path(home: Home, image_id: bytes) -> Path:
    """The path of an image's kept chunks."""
    return home.kept / image_id.hex()


def add_chunks(
    home: Home, image_id: bytes, chunks: list[tuple[bytes, memoryview]], *, worth: int
) -> None:
    """Keep chunks (id, content) of an image beside those that are kept.

    Of several processes one does so at a time: the next finds what it has kept.

    Args:
        worth: the file is written once one byte of so many would be new in it.
    """
    try:
        home.kept.mkdir(mode=0o700, exist_ok=True)
        with locked_folder(home.kept), closing(KeptChunks(home, image_id)) as kept:
            new = kept.lacking(chunks)
            if new * worth > kept.size + new:
                keep_chunks(home, image_id, kept.joined(chunks))
    except OSError as err:
        _log.info("decoded chunks are not kept in %s: %s", home.kept, err)


def keep_chunks(home: Home, image_id: bytes, chunks: list[tuple[bytes, memoryview]]) -> bool:
    """Keep chunks (id, content) of an image, in place of those that are kept.

    Returns:
        Whether they were kept: not where the disk refuses, or has little room.
    """
    path = kept_path(home, image_id)
    size = sum(len(content) for _, content in chunks)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        room = os.statvfs(path.parent)
        if size * SHARE_OF_ROOM > room.f_bavail * room.f_frsize:
            return False
        _write(path, chunks)
        _drop_oldest(path.parent)
    except OSError as err:
        _log.info("decoded chunks are not kept in %s: %s", path.parent, err)
        return False
    return True


def forget_chunks(home: Home, image_id: bytes) -> None:
    """Delete the kept chunks of an image, if there are any."""
    with suppress(OSError):
        kept_path(home, image_id).unlink()


def _write(path: Path, chunks: list[tuple[bytes, memoryview]]) -> None:
    """Write a file whole or not at all. It is not synced: after a crash it may be damaged."""
    file = tempfile.NamedTemporaryFile(dir=path.parent, delete=False)  # noqa: SIM115  renamed
    try:
        with file:
            file.write(_HEADER.pack(_MAGIC, _VERSION, len(chunks)))
            offset = _HEADER.size + len(chunks) * _ENTRY.size
            for chunk_id, content in chunks:
                file.write(_ENTRY.pack(chunk_id, offset, len(content)))
                offset += len(content)
            file.writelines(content for _, content in chunks)
        Path(file.name).replace(path)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise


def _drop_oldest(folder: Path) -> None:
    """Delete the files that were unused for longest, down to `MAX_IMAGES`."""
    used = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in used[MAX_IMAGES:]:
        path.unlink(missing_ok=True)


def _read_places(fd: int) -> dict[bytes, tuple[int, int]]:
    """Return offset and size of each chunk, by id; none if the table is damaged."""
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return {}
    magic, version, count = _HEADER.unpack(header)
    if (magic, version) != (_MAGIC, _VERSION) or count > _MAX_CHUNKS:
        return {}
    table = os.pread(fd, count * _ENTRY.size, _HEADER.size)
    if len(table) < count * _ENTRY.size:
        return {}
    end = os.fstat(fd).st_size
    entries = _ENTRY.iter_unpack(table)
    return {chunk: (offset, size) for chunk, offset, size in entries if offset + size <= end}
