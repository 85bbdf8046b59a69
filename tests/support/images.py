"""Images for tests: content of every kind, layers in memory and in a store, reads into views."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol, Self

from p2pcloop.errors import CorruptError
from p2pcloop.formats.block_map import Run
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.cloop_writer import CloopForm, write_cloop
from p2pcloop.formats.index import build_index, open_index
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.layer import Layer
from p2pcloop.making.build import pack_raw
from p2pcloop.store.have import HaveFile

PIECE = 1 << 14


def make_image(size: int, seed: int = 1) -> bytes:
    """Noise, text, zeros and repeated chunks, as a file system has them."""
    noise = random.Random(seed)
    chunk = noise.randbytes(3000) + b"%d\n" % seed * 40_000
    parts = []
    for n in range(size // 65536 + 1):
        kind = (n + seed) % 4
        if kind == 0:
            parts.append(chunk[:65536])
        elif kind == 1:
            parts.append(bytes(65536))
        elif kind == 2:
            parts.append(noise.randbytes(65536))
        else:
            parts.append((b"block %d of %d\n" % (n, seed) * 8192)[:65536])
    return b"".join(parts)[:size]


def padded(raw: bytes, unit: int = 4096) -> bytes:
    """What the device of an image reads as."""
    return raw.ljust(-(-len(raw) // unit) * unit, b"\0")


def write_cloop_file(path: Path, raw: bytes, block_size: int = 65536) -> Path:
    with path.open("wb") as file:
        write_cloop(io.BytesIO(raw), len(raw), file, CloopForm(block_size=block_size))
    return path


def ignore(_done: int) -> None:
    """Progress that is not looked at."""


class Readable(Protocol):
    """What reads into views: a device."""

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None: ...


def read_views(device: Readable, offset: int, lengths: Sequence[int]) -> bytes:
    """Read into views of these lengths, one after the other."""
    buffers = [bytearray(b"\xaa" * length) for length in lengths]
    device.read_into(offset, [memoryview(buffer) for buffer in buffers])
    return b"".join(buffers)


class MemoryContent:
    """A layer's bytes in memory (`image.content.Content`); what it holds may be changed."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.reads: list[tuple[int, int]] = []
        self.closed = False

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return bytes(self.data[offset : offset + length])

    def missing(self, offset: int, length: int) -> ByteRange | None:  # noqa: ARG002
        """All is here."""
        return None

    def place(self, offset: int, length: int) -> None:
        """It is of no torrent."""

    def use(self, offset: int, length: int) -> None:
        """Nothing is evicted."""

    def reject(self, offset: int, length: int, what: str) -> NoReturn:
        raise CorruptError(f"{what}: {length} bytes at {offset}")

    def close(self) -> None:
        self.closed = True


def make_layer(runs: list[Run], chunks: list[bytes], blocks: int) -> Layer:
    """A layer in memory of plain chunks."""
    table, pack = [], b""
    for content in chunks:
        digest = hashlib.sha256(content).digest()
        table.append(Chunk(len(pack), len(content), len(content) // 4096, Codec.NONE, digest))
        pack += content
    index = build_index(runs, table, image_size=blocks * 4096, pack_length=len(pack))
    return Layer(MemoryContent(index + pack), open_index(index))


class StoredLayer:
    """A layer in a node's store, of which nothing is here at first.

    Attributes:
        content: index and pack, as they were published.
        ref: as a manifest has it.
        directory: the torrent's place in the store.
        have: the writer's side of the have file.
        asked: every range that was answered.
    """

    def __init__(self, torrents: Path, raw: bytes, torrent: bytes = bytes(range(20))) -> None:
        pack = io.BytesIO()
        index = pack_raw(lambda at, length: raw[at : at + length], len(raw), pack, ignore)
        self._place(torrents, index, pack.getvalue(), torrent)

    @classmethod
    def of(cls, torrents: Path, index: bytes, pack: bytes, torrent: bytes) -> Self:
        """A layer of which index and pack were made already."""
        layer = cls.__new__(cls)
        layer._place(torrents, index, pack, torrent)
        return layer

    def _place(self, torrents: Path, index: bytes, pack: bytes, torrent: bytes) -> None:
        self.content = index + pack
        header = open_index(index)
        self.ref = LayerRef(
            layer_id=header.layer_id,
            torrent=torrent,
            index_length=len(index),
            header_length=header.length,
            pack_length=header.pack_length,
            piece_length=PIECE,
        )
        self.directory = torrents / torrent.hex()
        self.asked: list[ByteRange] = []
        folder = self.directory / "data" / header.layer_id.hex()[:32]
        folder.mkdir(parents=True)
        self.index_path, self.pack_path = folder / "index", folder / "pack"
        # Sparse files, as libtorrent makes them before anything has come.
        self.index_path.write_bytes(bytes(len(index)))
        self.pack_path.write_bytes(bytes(header.pack_length))
        self.pieces = -(-len(self.content) // PIECE)
        self.have = HaveFile.create(self.directory / "have", torrent, self.pieces)

    def store(self, pieces: Sequence[int] | range) -> None:
        """Bring pieces here as p2pcloopd does: first the data, then the have bits."""
        length = len(self.index_path.read_bytes())
        data = bytearray(self.index_path.read_bytes() + self.pack_path.read_bytes())
        for piece in pieces:
            data[piece * PIECE : (piece + 1) * PIECE] = self.content[
                piece * PIECE : (piece + 1) * PIECE
            ]
        self.write(bytes(data[:length]), bytes(data[length:]))
        self.have.add(pieces)

    def write(self, index: bytes | bytearray, pack: bytes | bytearray) -> None:
        """Overwrite the files where they lie."""
        for path, data in ((self.index_path, index), (self.pack_path, pack)):
            with path.open("r+b") as file:
                file.write(data)

    def answer(self, wanted: ByteRange) -> bytes:
        """What p2pcloopd answers."""
        assert wanted.torrent == self.ref.torrent
        assert wanted.length > 0
        assert wanted.offset + wanted.length <= len(self.content)
        self.asked.append(wanted)
        return self.content[wanted.offset : wanted.offset + wanted.length]

    def only_range(self, missing: Missing) -> ByteRange:
        (wanted,) = missing.ranges
        return wanted
