"""The have file: which pieces of a torrent are here, verified and durable.

One bit a piece, after a header of 40 bytes (docs/formats/have.md). Only p2pcloopd writes it; a
block server looks into it for every chunk that it reads. A bit is set only after the piece's bytes
were compared with their hash and synced. Readers still compare each chunk with its SHA-256. So the
worst that a crash can cost is one more fetch, for a bit that it lost.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from p2pcloop.errors import FormatError, NotHereError, storage_error
from p2pcloop.store.home import replace_file
from p2pcloop.words import tr

MAGIC = b"P2PCHAVE"
VERSION = 1
MAX_PIECES = 1 << 18
"""p2pcloopd accepts no torrent with more: the bitmap is 32 KiB at most."""

_FIELDS = struct.Struct("<8sII20s")
_CHECK = struct.Struct("<I")
HEADER_SIZE = _FIELDS.size + _CHECK.size


def _header(info_hash: bytes, pieces: int) -> bytes:
    fields = _FIELDS.pack(MAGIC, VERSION, pieces, info_hash)
    return fields + _CHECK.pack(zlib.crc32(fields))


def _parse(data: bytes, path: Path) -> tuple[bytes, int]:
    """Check a have file whole; return the info hash and the number of pieces.

    Raises:
        FormatError: not a have file, of another version, torn, or of the wrong size.
    """
    if len(data) < HEADER_SIZE:
        raise FormatError(
            tr(
                "{path}: {data_count} bytes are too few for a have file",
                path=path,
                data_count=len(data),
            )
        )
    magic, version, pieces, info_hash = _FIELDS.unpack(data[: _FIELDS.size])
    if magic != MAGIC or version != VERSION:
        raise FormatError(
            tr("{path} is not a have file of version {version}", path=path, version=VERSION)
        )
    if _CHECK.unpack(data[_FIELDS.size : HEADER_SIZE]) != (zlib.crc32(data[: _FIELDS.size]),):
        raise FormatError(tr("{path}: the header's checksum is wrong", path=path))
    if not 1 <= pieces <= MAX_PIECES or len(data) != HEADER_SIZE + (pieces + 7) // 8:
        raise FormatError(
            tr(
                "{path}: {data_count} bytes cannot be the bits of {pieces} pieces",
                path=path,
                data_count=len(data),
                pieces=pieces,
            )
        )
    if pieces % 8 and data[-1] & (0xFF >> pieces % 8):
        raise FormatError(tr("{path}: bits are set behind the last piece", path=path))
    return info_hash, pieces


def _mask(bits: bytes | bytearray, start: int, first: int, last: int) -> bool:
    """Whether the bits `first` to `last` are all set; bit 0 is the top one of byte `start`."""
    low, high = first >> 3, last >> 3
    value = int.from_bytes(bits[start + low : start + high + 1], "big") >> (7 - (last & 7))
    want = (1 << (last - first + 1)) - 1
    return value & want == want


_EACH = [bytes(byte >> shift & 1 for shift in range(7, -1, -1)) for byte in range(256)]
"""The bits of each byte, the top one first, a byte each."""


class HaveFile:
    """The writer's side. Errors of the disk are `StorageError`.

    Attributes:
        pieces: how many the torrent has.
        count: how many of them are here.
    """

    def __init__(self, path: Path, fd: int, header: bytes, bits: bytearray, pieces: int) -> None:
        self._path = path
        self._fd = fd
        self._header = header
        self._bits = bits
        self.pieces = pieces
        self.count = int.from_bytes(bits, "big").bit_count()
        self._unsaved: set[int] = set()

    @classmethod
    def create(
        cls, path: Path, info_hash: bytes, pieces: int, *, complete: bool = False
    ) -> HaveFile:
        """Replace any old file by a new one: no piece is here, or every piece.

        A view of the old file goes on seeing the old bits: close views, or make sure that those
        bits stay true.
        """
        bits = bytearray((pieces + 7) // 8)
        if complete:
            bits[:] = b"\xff" * len(bits)
            bits[-1] &= 0xFF << (-pieces % 8) & 0xFF
        replace_file(path, _header(info_hash, pieces) + bits)
        return cls.open(path, info_hash, pieces)

    @classmethod
    def open(cls, path: Path, info_hash: bytes, pieces: int) -> HaveFile:
        """Open the file of this torrent.

        Raises:
            NotHereError: there is none.
            FormatError: it is torn or belongs to another torrent: no bit of it counts.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotHereError(tr("{path} does not exist", path=path)) from None
        except OSError as err:
            raise storage_error(tr("cannot open {path}", path=path), err) from err
        try:
            data = os.pread(fd, HEADER_SIZE + MAX_PIECES // 8 + 1, 0)
            if _parse(data, path) != (info_hash, pieces):
                raise FormatError(tr("{path} belongs to another torrent", path=path))
        except OSError as err:
            os.close(fd)
            raise storage_error(tr("cannot read {path}", path=path), err) from err
        except FormatError:
            os.close(fd)
            raise
        return cls(path, fd, data[:HEADER_SIZE], bytearray(data[HEADER_SIZE:]), pieces)

    def has(self, first: int, last: int) -> bool:
        """Whether the pieces `first` to `last`, both counted, are all here."""
        return _mask(self._bits, 0, first, last)

    def add(self, pieces: Iterable[int]) -> None:
        """Note that pieces are here. Their data must be durable before this is called."""
        changed = set()
        for piece in pieces:
            self._check(piece)
            if not self.has(piece, piece):
                self._bits[piece >> 3] |= 0x80 >> (piece & 7)
                self.count += 1
                changed.add(piece >> 3)
        self._write(changed)

    def drop(self, *pieces: int) -> None:
        """Note durably that pieces are not here; also those for which that failed before."""
        changed = set()
        for piece in pieces:
            self._check(piece)
            if self.has(piece, piece):
                self._bits[piece >> 3] &= ~(0x80 >> (piece & 7))
                self.count -= 1
                changed.add(piece >> 3)
        self._write(changed)

    def complete(self) -> bool:
        """Whether every piece is here."""
        return self.count == self.pieces

    def to_list(self) -> list[bool]:
        """One item a piece."""
        return [bool(self._bits[i >> 3] & (0x80 >> (i & 7))) for i in range(self.pieces)]

    def bits(self) -> bytes:
        """One bit a piece, most significant bit first."""
        return bytes(self._bits)

    def close(self) -> None:
        """Close the file; all that was added is durable already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _check(self, piece: int) -> None:
        if not 0 <= piece < self.pieces:
            raise ValueError(f"piece {piece} of {self.pieces}")

    def _write(self, changed: set[int]) -> None:
        """Write bytes one by one, since a byte is never torn, and make them durable.

        A file that was cut short is first written anew: all bits in memory are durable.
        """
        self._unsaved |= changed
        try:
            if self._unsaved and os.fstat(self._fd).st_size < HEADER_SIZE + len(self._bits):
                os.pwrite(self._fd, self._header + self._bits, 0)
            for index in sorted(self._unsaved):
                os.pwrite(self._fd, self._bits[index : index + 1], HEADER_SIZE + index)
            if self._unsaved:
                os.fdatasync(self._fd)
        except OSError as err:
            raise storage_error(tr("cannot write {path}", path=self._path), err) from err
        self._unsaved.clear()


class HaveView:
    """The reader's side, in any process: it looks into the file each time.

    It uses pread(2), not a mapping: if the file were emptied, a mapping would end the process by
    SIGBUS, and some file systems (FUSE with `direct_io`) have no mappings. It costs 1 µs more.

    Raises:
        NotHereError: there is no such file.
        FormatError: it is torn: treat everything as missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotHereError(tr("{path} does not exist", path=path)) from None
        except OSError as err:
            raise storage_error(tr("cannot open {path}", path=path), err) from err
        try:
            data = self._read(HEADER_SIZE + MAX_PIECES // 8 + 1, 0)
            self.info_hash, self.pieces = _parse(data, path)
        except BaseException:
            self.close()
            raise

    def has(self, first: int, last: int) -> bool:
        """Whether the pieces `first` to `last`, both counted, are all here and durable.

        Raises:
            FormatError: the file was cut short since it was opened.
        """
        if last >= self.pieces:
            return False
        low, high = first >> 3, last >> 3
        bits = self._read(high - low + 1, HEADER_SIZE + low)
        if len(bits) <= high - low:
            raise FormatError(tr("{path} was cut short while in use", path=self._path))
        return _mask(bits, 0, first - 8 * low, last - 8 * low)

    def each(self) -> bytes:
        """A byte for each piece: 1 where it is here and durable, else 0."""
        bits = self._read((self.pieces + 7) // 8, HEADER_SIZE)
        return b"".join(map(_EACH.__getitem__, bits))[: self.pieces].ljust(self.pieces, b"\0")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, length: int, offset: int) -> bytes:
        try:
            return os.pread(self._fd, length, offset)
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=self._path), err) from err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_whole(path: Path) -> bool:
    """Whether every piece is here and durable, by the have file at `path`; False if it is torn."""
    try:
        with HaveView(path) as view:
            return view.has(0, view.pieces - 1)
    except (NotHereError, FormatError):
        return False
