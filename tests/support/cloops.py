"""Small cloops of the older and newer versions, laid out by hand."""

from __future__ import annotations

import lzma
import random
import struct
import zlib
from collections.abc import Sequence

import lz4.block

from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.lzo import encode_lzo

SIZE = 1024
"""Of a block."""

FLAGS = {Codec.ZLIB: 0, Codec.NONE: 1, Codec.XZ: 2, Codec.LZ4: 3, Codec.LZO: 4}
START = b"what a stream begins with\n"


def _content(codec: Codec) -> bytes:
    return (random.Random(codec).randbytes(300) * 4)[:SIZE]


V4_CONTENT = {codec: _content(codec) for codec in FLAGS}
V4_STREAMS = {
    Codec.ZLIB: zlib.compress(V4_CONTENT[Codec.ZLIB]),
    Codec.NONE: V4_CONTENT[Codec.NONE],
    Codec.XZ: lzma.compress(V4_CONTENT[Codec.XZ], check=lzma.CHECK_CRC32),
    Codec.LZ4: lz4.block.compress(V4_CONTENT[Codec.LZ4], store_size=False),
    Codec.LZO: encode_lzo(V4_CONTENT[Codec.LZO]),
}


def preamble(version: str) -> bytes:
    """The script of a version; of V0.68 it names none."""
    named = b"" if version == "V0.68" else f"#{version} Format\n".encode()
    script = b"#!/bin/sh\n" + named + b"insmod cloop.o file=$0 && mount -r /dev/cloop $1\n"
    return script.ljust(128, b"\0")


def build_v4(
    codecs: Sequence[Codec],
    *,
    header_last: bool = False,
    start: bytes = START,
    repeats: Sequence[int] | None = None,
    streams: Sequence[bytes] | None = None,
    entries: Sequence[int] | None = None,
    block_size: int = SIZE,
) -> bytes:
    """A cloop V4.0.

    Args:
        codecs: of its blocks, which have what `V4_CONTENT` says.
        header_last: or first.
        start: what comes before the blocks of a file with its header last.
        repeats: which of the blocks are there, by number, in the order of the device.
        streams: stored instead of `V4_STREAMS`.
        entries: of the index, instead of the right ones.
        block_size: that the header says.
    """
    stored = streams or [V4_STREAMS[codec] for codec in codecs]
    order = range(len(codecs)) if repeats is None else repeats
    place = len(start) if header_last else 136 + 8 * (len(order) + 1)
    places = []
    for codec, stream in zip(codecs, stored, strict=True):
        places.append(FLAGS[codec] << 60 | place)
        place += len(stream)
    right = [*(places[number] for number in order), place]
    index = struct.pack(f">{len(right)}Q", *(right if entries is None else entries))
    header = preamble("V4.0") + struct.pack(">II", block_size, len(order))
    data = b"".join(stored)
    return start + data + index + header if header_last else header + index + data


def build_old(version: str, blocks: Sequence[bytes]) -> bytes:
    """A cloop V0.68 (32-bit offsets, big-endian) or V1.0 (64-bit, little-endian) of zlib blocks."""
    code = ">I" if version == "V0.68" else "<Q"
    stored = [zlib.compress(block, 9) for block in blocks]
    place = 136 + struct.calcsize(code) * (len(blocks) + 1)
    places = [place]
    for stream in stored:
        places.append(places[-1] + len(stream))
    header = preamble(version) + struct.pack(">II", len(blocks[0]), len(blocks))
    return header + b"".join(struct.pack(code, place) for place in places) + b"".join(stored)
