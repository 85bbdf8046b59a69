"""What a node serves over HTTP: the layout of mirrors, of what is durable here, and nothing else.

A path is taken apart by formats/mirror.py, which knows five kinds; no part of it is ever joined to
a path of this machine as it came.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

import trio

from p2pcloop.errors import FormatError, MismatchError, NotHereError
from p2pcloop.formats.mirror import (
    INDEX,
    PACK,
    HandoutPath,
    LayerFilePath,
    ManifestPath,
    MetainfoPath,
    RecordPath,
    build_metainfo,
    parse_path,
)
from p2pcloopd.engine.stored import Stored
from p2pcloopd.http.server import File
from p2pcloopd.node.node import Node

_SMALL = 64 << 10
"""Bytes that are read without a thread: what a guest waits for is less, and copied in no time."""

_BINARY = "application/octet-stream"
_TORRENT = "application/x-bittorrent"  # BEP 3


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A small file (p2pcloopd.http.server.File)."""

    data: bytes
    media_type: str = _BINARY
    lasting: bool = True

    @property
    def size(self) -> int:
        return len(self.data)

    def here(self, offset: int, length: int) -> bool:
        return offset + length <= len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


@dataclass(frozen=True, slots=True)
class _LayerFile:
    """A file of a layer's torrent, of which parts may be missing (see `File`)."""

    stored: Stored
    start: int
    size: int
    media_type: str = _BINARY
    lasting: bool = True

    def here(self, offset: int, length: int) -> bool:
        return self.stored.has(self.start + offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        data = await _read(self.stored, self.start + offset, length)
        if not self.here(offset, length):  # evicted meanwhile: bits go first, then the bytes
            raise NotHereError("a part of a layer that was being sent is not here any more")
        return data


async def _read(stored: Stored, offset: int, length: int) -> bytes:
    """Bytes that are durable: at once where the system has them in memory, as it mostly does."""
    data = stored.read_now(offset, length) if length <= _SMALL else None
    if data is None:
        data = await trio.to_thread.run_sync(stored.read, offset, length)
    return data


async def find_file(node: Node, path: str) -> File | None:
    """The file of a path below the node's URL, or None where there is none here.

    Raises:
        StorageError: the disk refuses.
        NotHereError: a piece that was to be handed out was evicted meanwhile.
    """
    found = parse_path(unquote(path))
    match found:
        case RecordPath(name):
            known = node.records.find(name)
            if known is None or known.record is None:
                return None
            return _Bytes(known.record, lasting=False)
        case ManifestPath(manifest_id):
            try:
                signed = await trio.to_thread.run_sync(node.records.manifest, manifest_id)
            except (NotHereError, FormatError, MismatchError):
                return None
            return _Bytes(signed.data)
        case MetainfoPath(info_hash):
            torrent = node.engine.get(info_hash)
            stored = None if torrent is None else torrent.transfer.disk
            return None if stored is None else _Bytes(build_metainfo(stored.info), _TORRENT)
        case LayerFilePath(torrent_name, file):
            return _find_layer_file(node, torrent_name, file)
        case HandoutPath():
            return await _hand_out(node, found)
        case None:
            return None


async def _hand_out(node: Node, asked: HandoutPath) -> File | None:
    """One of the pieces, or nothing of them; None where none of them is here."""
    torrent = node.engine.get(asked.torrent)
    stored = None if torrent is None else torrent.transfer.disk
    if stored is None:
        return None
    count = stored.layout.pieces
    here = [piece for piece in asked.pieces if piece < count and stored.have.has(piece, piece)]
    if not here:
        return None
    piece = node.handed_out.choose(asked.torrent, here)
    if piece is None:
        return _Bytes(b"", lasting=False)
    offset, length = piece * stored.layout.piece_length, stored.layout.piece_size(piece)
    data = await _read(stored, offset, length)
    return _Bytes(piece.to_bytes(4, "big") + data, lasting=False)


def _find_layer_file(node: Node, torrent_name: str, file: str) -> File | None:
    """Of several torrents of one name, the one of which the most is here."""
    found = [
        torrent
        for torrent in node.engine.torrents
        if torrent.layout is not None
        and [path.parts for path, _ in torrent.layout.files]
        == [(torrent_name, INDEX), (torrent_name, PACK)]
    ]
    if not found:
        return None
    stored = max(found, key=lambda torrent: torrent.have_bytes).transfer.stored
    (_, index_size), (_, pack_size) = stored.layout.files
    if file == INDEX:
        return _LayerFile(stored, 0, index_size)
    return _LayerFile(stored, index_size, pack_size)
