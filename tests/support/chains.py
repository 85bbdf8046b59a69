"""Layers of chains."""

from __future__ import annotations

import hashlib
from contextlib import closing

from p2pcloop.formats.block_map import Run
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.index import build_index
from p2pcloop.formats.lzma_chain import ChainEncoder

PER_CHUNK = 2
SIZE = PER_CHUNK * 4096


def content_of(number: int) -> bytes:
    """Content that is partly that of the chunks before."""
    return (b"every chunk has this, %d\n" % (number // 2) * 400)[:SIZE]


def pack_chains(lengths: list[int], damage: dict[int, Codec] | None = None) -> tuple[bytes, bytes]:
    """Index and pack of a layer of chains of so many chunks each; some may have another codec."""
    table: list[Chunk] = []
    pack = b""
    for length in lengths:
        with closing(ChainEncoder()) as encoder:
            for at in range(length):
                content = content_of(len(table))
                stored = encoder.encode(content)
                codec = Codec.CHAIN_NEXT if at else Codec.CHAIN_START
                codec = (damage or {}).get(len(table), codec)
                digest = hashlib.sha256(content).digest()
                table.append(Chunk(len(pack), len(stored), PER_CHUNK, codec, digest))
                pack += stored
    blocks = PER_CHUNK * len(table)
    runs = [Run(0, blocks, 0, 0, PER_CHUNK)]
    index = build_index(runs, table, image_size=blocks * 4096, pack_length=len(pack))
    return index, pack
