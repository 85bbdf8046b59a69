"""Images as large as the formats allow, written straight into a home: a publisher can claim them.

The module itself serves one: `python -m bench.limits HOME SOCKET [OVERLAY]`.
"""

from __future__ import annotations

import hashlib
import sys
from functools import partial
from pathlib import Path

import trio
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from p2pcloop.formats.block_map import RUN, ZERO_CHUNK, Run, pack_runs
from p2pcloop.formats.chunk_table import ENTRIES_PER_PAGE, Chunk, Codec, pack_chunks
from p2pcloop.formats.index import FIXED, HASH_SIZE, MAGIC, MAX_CHUNKS, MAX_RUNS, PLAIN_VERSION
from p2pcloop.formats.manifest import LayerRef, Manifest, open_manifest, sign_manifest
from p2pcloop.store.have import HaveFile
from p2pcloop.store.home import Home
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.block.server import serve, serve_until_signal
from p2pcloopd.block.spec import BlockServerSpec

TERABYTE = 1 << 40
_PIECE_LENGTH = 1 << 20
_TORRENT = bytes(range(20))
_MANIFEST = "image"


def write_empty(home: Home) -> None:
    """An image of 1 TiB of zeros."""
    _write(home, TERABYTE, b"", chunks=0)


def write_largest_table(home: Home) -> None:
    """An image of 64 GiB in 2^24 chunks: 805 MB of index, all of whose pages are one page."""
    run = Run(0, MAX_CHUNKS, 0, 0, 1)
    _write(home, MAX_CHUNKS * BLOCK_SIZE, pack_runs([run]), chunks=MAX_CHUNKS)


def write_largest_map(home: Home) -> None:
    """An image of 1 TiB whose map has 2^20 runs, none beside the next."""
    stride = TERABYTE // BLOCK_SIZE // MAX_RUNS
    runs = (Run(n * stride, 1, 0 if n % 2 else ZERO_CHUNK, 0, n % 2) for n in range(MAX_RUNS))
    _write(home, TERABYTE, pack_runs(runs), chunks=1)


def _write(home: Home, size: int, runs: bytes, *, chunks: int) -> None:
    home.create()
    block = bytes(range(256)) * (BLOCK_SIZE // 256)
    pack = zstandard.compress(block)
    entry = Chunk(0, len(pack), 1, Codec.ZSTD, hashlib.sha256(block).digest())
    pages = -(-chunks // ENTRIES_PER_PAGE)
    entries = min(chunks, ENTRIES_PER_PAGE)
    page = pack_chunks([entry] * entries)
    stored_map = zstandard.compress(runs)
    header = FIXED.pack(
        *(MAGIC, PLAIN_VERSION, FIXED.size + HASH_SIZE * pages, size, len(pack), chunks),
        *(ENTRIES_PER_PAGE, len(runs) // RUN.size, len(stored_map)),
        hashlib.sha256(stored_map).digest(),
    )
    header += hashlib.sha256(page).digest() * pages
    directory = home.torrents / _TORRENT.hex()
    folder = directory / "data" / "limits"
    folder.mkdir(parents=True)
    with (folder / "index").open("wb") as file:
        file.write(header + stored_map)
        for _ in range(pages):
            file.write(page)
        length = file.tell()
    (folder / "pack").write_bytes(pack)
    pieces = -(-(length + len(pack)) // _PIECE_LENGTH)
    HaveFile.create(directory / "have", _TORRENT, pieces, complete=True).close()
    layer = LayerRef(
        hashlib.sha256(header).digest(), _TORRENT, length, len(header), len(pack), _PIECE_LENGTH
    )
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    signed = sign_manifest(Manifest(public, "limits", 1, 0, size, (layer,)), key)
    (home.root / _MANIFEST).write_bytes(signed)


def main(home_path: str, socket: str, overlay: str | None = None) -> None:
    """Serve such an image over NBD until SIGTERM, as `p2pcloop block` does."""
    home = Home.at(Path(home_path))
    spec = BlockServerSpec(
        home=home,
        image=open_manifest((home.root / _MANIFEST).read_bytes()),
        overlay=None if overlay is None else Path(overlay),
        nbd=f"unix:{socket}",
    )
    trio.run(partial(serve_until_signal, partial(serve, spec, lambda: None)))


if __name__ == "__main__":
    main(*sys.argv[1:])
