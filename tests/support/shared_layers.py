"""Layers that share chunks, sealed or not, in the store of a node that lacks what is not given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import zstandard

from p2pcloop.formats.block_map import Run
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.index import build_index
from p2pcloop.formats.manifest import LayerRef, Manifest
from p2pcloop.formats.seal import Seal, key_check
from p2pcloop.image.api import Missing
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.stored import StoredImage
from tests.support.images import StoredLayer

SECRET = bytes(range(32))
BLOCK = 4096


def block_of(fill: int) -> bytes:
    """A block that compresses, and is unlike that of any other fill."""
    return hashlib.sha256(b"%d" % fill).digest() * 128


class SharedLayer:
    """A layer of one chunk for each block that it holds, some of them in the packs of others.

    Attributes:
        stored: index and pack in the store.
        chunks: of its table.
        blocks: what it holds: block of the device to fill.
        sealed: whether it is.
    """

    def __init__(
        self,
        torrents: Path,
        number: int,
        blocks: dict[int, int],
        *,
        size: int,
        seal: Seal | None = None,
        sources: Sequence[SharedLayer] = (),
    ) -> None:
        """Chunks that a source has in its own pack are referred to; the rest is packed.

        Args:
            torrents: of the home.
            number: tells it from other layers.
            blocks: block of the device to fill.
            size: blocks of the device.
            seal: of this layer.
            sources: other layers.
        """
        self.blocks = blocks
        self.sealed = seal is not None
        self.chunks: list[Chunk] = []
        pack = b""
        runs = []
        for block, fill in sorted(blocks.items()):
            content = block_of(fill)
            digest = hashlib.sha256(content).digest()
            chunk = _chunk_of_sources(digest, sources)
            if chunk is None:
                stored = zstandard.ZstdCompressor().compress(content)
                if seal is not None:
                    stored = seal.seal_chunk(len(pack), stored)
                chunk = Chunk(len(pack), len(stored), 1, Codec.ZSTD, digest)
                pack += stored
            runs.append(Run(block, 1, len(self.chunks)))
            self.chunks.append(chunk)
        index = build_index(
            runs,
            self.chunks,
            image_size=size * BLOCK,
            pack_length=len(pack),
            sources=[source.stored.ref.layer_id for source in sources],
            seal=seal,
        )
        torrent = hashlib.sha1(b"%d" % number, usedforsecurity=False).digest()
        self.stored: StoredLayer = StoredLayer.of(torrents, index, pack, torrent)

    @property
    def ref(self) -> LayerRef:
        """As a manifest has it."""
        return self.stored.ref

    def store_all(self) -> None:
        """Bring all of it here."""
        self.stored.store(range(self.stored.pieces))

    def place(self, number: int) -> tuple[int, int]:
        """Offset and length, in the torrent, of a chunk in the layer's own pack."""
        chunk = self.chunks[number]
        assert chunk.source == 0
        return self.ref.index_length + chunk.offset, chunk.length


def _chunk_of_sources(digest: bytes, sources: Sequence[SharedLayer]) -> Chunk | None:
    for number, source in enumerate(sources, 1):
        for chunk in source.chunks:
            if chunk.id == digest and not chunk.source:
                return Chunk(chunk.offset, chunk.length, 1, chunk.codec, digest, source=number)
    return None


def manifest_of(
    layers: Sequence[SharedLayer], *, sources: Sequence[SharedLayer] = (), private: bool = False
) -> Manifest:
    """An unsigned manifest; private under `SECRET`."""
    header = layers[-1].stored.content
    return Manifest(
        key=bytes(32),
        label="a",
        version=1,
        created=0,
        size=int.from_bytes(header[16:24], "little"),
        layers=tuple(layer.ref for layer in layers),
        sources=tuple(layer.ref for layer in sources),
        key_check=key_check(SECRET) if private else None,
    )


class Peers:
    """Answers what is missing, as p2pcloopd would.

    Attributes:
        rounds: how often it was asked.
        asked: torrent, offset and length of every range.
    """

    def __init__(self, *layers: SharedLayer) -> None:
        self._layers = {layer.ref.torrent: layer.stored for layer in layers}
        self.rounds = 0
        self.asked: list[tuple[bytes, int, int]] = []

    def supply(self, stored: StoredImage, missing: Missing) -> None:
        """Bring ranges here."""
        self.rounds += 1
        assert self.rounds < 1000
        for wanted in missing.ranges:
            self.asked.append((wanted.torrent, wanted.offset, wanted.length))
            stored.accept(wanted, self._layers[wanted.torrent].answer(wanted))

    def open(self, stored: StoredImage) -> MergedImage:
        """Open an image."""
        while True:
            try:
                return stored.open()
            except Missing as missing:
                self.supply(stored, missing)
