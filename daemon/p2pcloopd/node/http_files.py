"""What a node serves over HTTP: the layout of mirrors, of what is durable here, and nothing else.

A path is taken apart by formats/mirror.py, which knows five kinds; no part of it is ever joined to
a path of this machine as it came.
"""

from __future__ import annotations

from hashlib import sha256
from urllib.parse import unquote

import trio

from p2pcloop.errors import FormatError, MismatchError, NotHereError
from p2pcloop.formats.mirror import (
    INDEX,
    PACK,
    DispatchPath,
    LayerFilePath,
    ManifestPath,
    MetainfoPath,
    RecordPath,
    build_metainfo,
    parse_path,
)
from p2pcloop.frozen import dataclass
from p2pcloopd.engine.disk.stored import Stored
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.http.server import BytesFile, File
from p2pcloopd.node.node import Node

_TORRENT = "application/x-bittorrent"  # BEP 3


@dataclass(frozen=True, slots=True)
class _LayerFile:
    """A file of a layer's torrent, of which parts may be missing (see `File`)."""

    torrent: Torrent
    stored: Stored
    start: int
    size: int
    etag: str
    media_type: str = "application/octet-stream"
    lasting: bool = True

    @property
    def modified(self) -> int:
        return self.stored.since

    def here(self, offset: int, length: int) -> bool:
        return self.stored.has(self.start + offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        data = await self.torrent.audit.read(self.start + offset, length)
        if not self.here(offset, length):  # evicted meanwhile: bits go first, then the bytes
            raise NotHereError("a part of a layer that was being sent is not here any more")
        return data


class NodeFiles:
    """What a node serves (p2pcloopd.http.server.Site)."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def methods(self, path: str) -> tuple[str, ...]:
        """What may be asked of a path. A dispatch is no file: the client that asks for it takes it.

        Nodes up to November 2026 ask for one by GET, and are told that nothing is there: any other
        error would be a fault of this mirror to them.
        """
        match parse_path(unquote(path)):
            case None:
                return ()
            case DispatchPath():
                return ("GET", "HEAD", "POST")
            case _:
                return ("GET", "HEAD")

    async def find(self, path: str) -> File | None:
        """The file of a path below the node's URL, or None where there is none here.

        Raises:
            StorageError: the disk refuses.
        """
        match parse_path(unquote(path)):
            case RecordPath(name):
                known = self._node.records.find(name)
                if known is None or known.record is None:
                    return None
                return BytesFile(known.record, sha256(known.record).hexdigest())
            case ManifestPath(manifest_id):
                try:
                    signed = await trio.to_thread.run_sync(self._node.records.manifest, manifest_id)
                except (NotHereError, FormatError, MismatchError):
                    return None
                created = signed.manifest.created
                return BytesFile(signed.data, manifest_id.hex(), created, lasting=True)
            case MetainfoPath(info_hash):
                stored = self._stored(info_hash)
                if stored is None:
                    return None
                data = build_metainfo(stored.info)
                return BytesFile(data, info_hash.hex(), stored.since, _TORRENT, lasting=True)
            case LayerFilePath(torrent_name, file):
                return _find_layer_file(self._node, torrent_name, file)
            case _:
                return None

    async def post(self, path: str) -> File | None:
        """One of the pieces that a client names, or nothing; None where none of them is here.

        Raises:
            StorageError: the disk refuses.
            NotHereError: the piece was evicted meanwhile.
        """
        asked = parse_path(unquote(path))
        if not isinstance(asked, DispatchPath):
            return None
        torrent, stored = self._node.engine.get(asked.torrent), self._stored(asked.torrent)
        if torrent is None or stored is None:
            return None
        layout = stored.layout
        sizes = {p: layout.piece_size(p) for p in asked.pieces if p < layout.pieces}
        here = [p for p, size in sizes.items() if stored.has(p * layout.piece_length, size)]
        if not here:
            return None
        with self._node.dispatched.choose(asked.torrent, here) as piece:
            if piece is None:
                return BytesFile(b"", None)
            data = await torrent.audit.read(piece * layout.piece_length, sizes[piece])
            return BytesFile(piece.to_bytes(4, "big") + data, None)

    def _stored(self, info_hash: bytes) -> Stored | None:
        torrent = self._node.engine.get(info_hash)
        return None if torrent is None else torrent.store.disk


def _find_layer_file(node: Node, torrent_name: str, file: str) -> File | None:
    """Of several torrents of one name, the one of which the most is here."""
    found = [
        torrent
        for torrent in node.engine.named(torrent_name)
        if torrent.layout is not None
        and [path.parts for path, _ in torrent.layout.files]
        == [(torrent_name, INDEX), (torrent_name, PACK)]
    ]
    if not found:
        return None
    torrent = max(found, key=lambda torrent: torrent.have_bytes)
    stored = torrent.store.stored
    (_, index_size), (_, pack_size) = stored.layout.files
    # Not the layer's id: a torrent that is called after a layer may be another.
    etag = f"{torrent.info_hash.hex()}-{file}"
    if file == INDEX:
        return _LayerFile(torrent, stored, 0, index_size, etag)
    return _LayerFile(torrent, stored, index_size, pack_size, etag)
