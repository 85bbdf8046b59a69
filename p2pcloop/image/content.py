"""The bytes of a layer: its index and its pack, end to end, as in its torrent.

Offsets count from the start of the index; the pack begins where the index ends. A layer made of a
local file has all bytes at hand. One from the store has the bytes that are durable by the have
file, and those that have just arrived from p2pcloopd.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import NoReturn, Protocol

from p2pcloop.errors import CorruptError, FormatError, NotHereError, storage_error
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.bits import Bits
from p2pcloop.store.have import HaveView
from p2pcloop.words import tr

ARRIVALS_LIMIT = 16 << 20
"""Bytes that have arrived and were not read yet. The oldest are dropped: most of them are durable
by then, and others are fetched again."""


class Content(Protocol):
    """The bytes of one layer."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes.

        Raises:
            Missing: they are not here.
            StorageError: the disk refuses.
        """

    def missing(self, offset: int, length: int) -> ByteRange | None:
        """Return the range to fetch before these bytes can be read; None if they are here."""

    def place(self, offset: int, length: int) -> ByteRange | None:
        """Return the torrent's range in which these bytes lie; None if they are of no torrent."""

    def use(self, offset: int, length: int) -> None:
        """Count bytes as used that were not read: what they decode to was kept."""

    def reject(self, offset: int, length: int, what: str) -> NoReturn:
        """Report that the bytes that `read` returned do not match their hash.

        Raises:
            Missing: they may be right elsewhere; the range asks to heal.
            CorruptError: there is no other source.
        """

    def close(self) -> None:
        """Close the files."""


class LocalContent:
    """A layer made of a file that lies here, with its index in memory."""

    def __init__(self, path: Path, index: bytes) -> None:
        self._path = path
        self._index = index
        self._fd = _open(path)

    def read(self, offset: int, length: int) -> bytes:
        """See `Content.read`; nothing is ever missing."""
        if offset < len(self._index):
            return self._index[offset : offset + length]
        try:
            data = os.pread(self._fd, length, offset - len(self._index))
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=self._path), err) from err
        if len(data) != length:
            self.reject(offset, length, "a part of the file")
        return data

    def missing(self, offset: int, length: int) -> None:
        """See `Content.missing`: all is here."""

    def place(self, offset: int, length: int) -> None:
        """See `Content.place`: a local file is of no torrent."""

    def use(self, offset: int, length: int) -> None:
        """See `Content.use`: nothing of a local file is ever evicted."""

    def reject(self, offset: int, length: int, what: str) -> NoReturn:  # noqa: ARG002  see Content
        """See `Content.reject`."""
        raise CorruptError(
            tr(
                "{what} in {path} does not match its hash: the file has changed",
                what=what,
                path=self._path,
            ),
            hint="restore the file; as long as it is used, it must stay as it is",
        )

    def close(self) -> None:
        """See `Content.close`."""
        os.close(self._fd)


class StoredContent:
    """A layer in the store of this node; parts of it may be missing."""

    def __init__(self, directory: Path, layer: LayerRef) -> None:
        """`directory` is the place of the layer's torrent in the store; it need not exist yet."""
        self._torrent = layer.torrent
        self._index_length = layer.index_length
        self._piece_length = layer.piece_length
        self._pieces = -(-(layer.index_length + layer.pack_length) // layer.piece_length)
        self._used = Bits(self._pieces)
        self._directory = directory
        self._have: HaveView | None = None
        self._fds: dict[str, int] = {}
        self._arrivals: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._arrived = 0
        self._healed: set[tuple[int, int]] = set()

    def accept(self, wanted: ByteRange, data: bytes) -> None:
        """Take p2pcloopd's answer to a missing range; the next read of the range returns it."""
        key = wanted.offset, wanted.length
        self._arrived += len(data) - len(self._arrivals.pop(key, b""))
        self._arrivals[key] = data
        if wanted.heal:
            self._healed.add(key)
        while self._arrived > ARRIVALS_LIMIT and len(self._arrivals) > 1:
            self._arrived -= len(self._arrivals.popitem(last=False)[1])

    def read(self, offset: int, length: int) -> bytes:
        """See `Content.read`."""
        data = self._arrivals.pop((offset, length), None)
        if data is not None:
            self._arrived -= len(data)
            self.use(offset, length)
            return data
        if not self.has(offset, length):
            raise Missing([ByteRange(self._torrent, offset, length)])
        # A range that was healed once may go bad on this disk again.
        self._healed.discard((offset, length))
        data = self._read_files(offset, length)
        if len(data) != length:
            self.reject(offset, length, "a part of a file in the store")
        self.use(offset, length)
        return data

    def missing(self, offset: int, length: int) -> ByteRange | None:
        """See `Content.missing`."""
        if (offset, length) in self._arrivals or self.has(offset, length):
            return None
        return self.place(offset, length)

    def place(self, offset: int, length: int) -> ByteRange:
        """See `Content.place`."""
        return ByteRange(self._torrent, offset, length)

    def is_whole(self) -> bool:
        """Whether all bytes are here and durable."""
        return self.has(0, self._pieces * self._piece_length)

    def used(self) -> bytes:
        """The pieces that were read so far: one bit a piece, most significant bit first."""
        return self._used.to_bytes()

    def has(self, offset: int, length: int) -> bool:
        """Whether these bytes are here and durable."""
        size = self._piece_length
        try:
            if self._have is None:
                self._have = HaveView(self._directory / "have")
            return self._have.has(offset // size, (offset + length - 1) // size)
        except (NotHereError, FormatError):
            # Not begun, torn by a crash, or cut short: ask p2pcloopd, which makes it anew.
            self._close_have()
            return False

    def reject(self, offset: int, length: int, what: str) -> NoReturn:
        """See `Content.reject`."""
        if (offset, length) in self._healed:
            self._healed.remove((offset, length))
            raise CorruptError(
                tr(
                    "{what} does not match its hash though it came as published: the publisher's"
                    " own data contradicts itself",
                    what=what,
                ),
                hint="ask the publisher to publish the image again",
            )
        raise Missing([ByteRange(self._torrent, offset, length, heal=True)])

    def close(self) -> None:
        """See `Content.close`."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._close_have()

    def _close_have(self) -> None:
        if self._have is not None:
            self._have.close()
            self._have = None

    def use(self, offset: int, length: int) -> None:
        """See `Content.use`."""
        size = self._piece_length
        for piece in range(offset // size, (offset + length - 1) // size + 1):
            self._used.add(piece)

    def _read_files(self, offset: int, length: int) -> bytes:
        """Return fewer bytes if a file was cut short, none if it was deleted."""
        in_pack = offset >= self._index_length
        try:
            fd = self._open_file("pack" if in_pack else "index")
            return os.pread(fd, length, offset - self._index_length if in_pack else offset)
        except FileNotFoundError:
            return b""
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=self._directory), err) from err

    def _open_file(self, name: str) -> int:
        """Open a file of the torrent when a piece of it is here; before, it may not exist."""
        if name not in self._fds:
            path = next(self._directory.glob(f"data/*/{name}"), None)
            if path is None:
                raise FileNotFoundError
            self._fds[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fds[name]


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise storage_error(tr("cannot open {path}", path=path), err) from err
