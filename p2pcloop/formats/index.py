"""Indexes: the map and the chunk table of one layer, in one file (docs/formats/index.md).

The header comes first. It holds the SHA-256 of the map and of each page of the chunk table; its
own SHA-256 is the layer's id, which the signed manifest names. So the map is read whole and the
table page by page, and each part is verified as it comes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import zstandard

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import RUN, Run, pack_runs, unpack_runs
from p2pcloop.formats.chunk_table import (
    ENTRIES_PER_PAGE,
    ENTRY,
    PAGE_SIZE,
    Chunk,
    pack_chunks,
    unpack_chunks,
)
from p2pcloop.formats.codec import decode_zstd
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE

MAGIC = b"P2PCIDX\0"
VERSION = 1
FIXED = struct.Struct("<8sIIQQIIII32s")
"""magic, version, header length, image size, pack length, chunk count, entries per page,
run count, stored map length, SHA-256 of the stored map."""

HASH_SIZE = 32
MAX_CHUNKS = 1 << 24
MAX_RUNS = 1 << 20
MAX_HEADER_SIZE = FIXED.size + HASH_SIZE * (MAX_CHUNKS // ENTRIES_PER_PAGE)


def zstd_bound(size: int) -> int:
    """The most bytes that zstd makes of `size` bytes (ZSTD_COMPRESSBOUND of zstd.h)."""
    return size + (size >> 8) + 128


MAX_INDEX_SIZE = MAX_HEADER_SIZE + zstd_bound(MAX_RUNS * RUN.size) + MAX_CHUNKS * ENTRY.size


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """What the header says; offsets are bytes from the start of the index.

    Attributes:
        layer_id: SHA-256 of the header.
        length: bytes of the header.
        image_size: bytes of the device.
        pack_length: bytes of the pack.
        chunk_count: entries of the chunk table.
        run_count: runs of the map.
        map_length: bytes of the map as it is stored.
        map_hash: SHA-256 of the map as it is stored.
        page_hashes: SHA-256 of each page of the chunk table.
    """

    layer_id: bytes
    length: int
    image_size: int
    pack_length: int
    chunk_count: int
    run_count: int
    map_length: int
    map_hash: bytes
    page_hashes: tuple[bytes, ...]

    @property
    def index_length(self) -> int:
        """Bytes of the whole index."""
        return self.length + self.map_length + self.chunk_count * ENTRY.size

    def page_extent(self, page: int) -> tuple[int, int]:
        """Offset and length of a page of the chunk table."""
        entries = min(ENTRIES_PER_PAGE, self.chunk_count - page * ENTRIES_PER_PAGE)
        return self.length + self.map_length + page * PAGE_SIZE, entries * ENTRY.size


def build_index(
    runs: Sequence[Run], chunks: list[Chunk], *, image_size: int, pack_length: int
) -> bytes:
    """Write the index of a layer.

    Raises:
        FormatError: more runs or chunks than the format holds.
    """
    if len(chunks) > MAX_CHUNKS or len(runs) > MAX_RUNS:
        raise FormatError(
            f"a layer of {len(chunks)} chunks and {len(runs)} runs is over the limits of "
            f"{MAX_CHUNKS} and {MAX_RUNS}"
        )
    stored_map = zstandard.ZstdCompressor(level=19).compress(pack_runs(runs))
    table = pack_chunks(chunks)
    pages = [table[at : at + PAGE_SIZE] for at in range(0, len(table), PAGE_SIZE)]
    fixed = FIXED.pack(
        MAGIC,
        VERSION,
        FIXED.size + HASH_SIZE * len(pages),
        image_size,
        pack_length,
        len(chunks),
        ENTRIES_PER_PAGE,
        len(runs),
        len(stored_map),
        hashlib.sha256(stored_map).digest(),
    )
    hashes = b"".join(hashlib.sha256(page).digest() for page in pages)
    return fixed + hashes + stored_map + table


def read_header(data: bytes) -> IndexHeader:
    """Check the bytes of a header whole and return what they say.

    Raises:
        FormatError: not an index header, of an unknown version, or over a limit.
    """
    if len(data) < FIXED.size or not data.startswith(MAGIC):
        raise FormatError("these bytes are not the index of a layer")
    (
        _,
        version,
        length,
        image_size,
        pack_length,
        chunk_count,
        per_page,
        run_count,
        map_length,
        (map_hash),
    ) = FIXED.unpack_from(data)
    if version != VERSION:
        raise FormatError(
            f"the index is of version {version}; this program reads {VERSION}",
            hint="a newer p2pcloop may read it",
        )
    pages = -(-chunk_count // ENTRIES_PER_PAGE)
    checks = {
        "header length": length == len(data) == FIXED.size + HASH_SIZE * pages,
        "image size": image_size % BLOCK_SIZE == 0 and 0 < image_size <= MAX_IMAGE_SIZE,
        "pack length": pack_length <= MAX_IMAGE_SIZE,
        "chunk count": chunk_count <= MAX_CHUNKS,
        "entries per page": per_page == ENTRIES_PER_PAGE,
        "run count": run_count <= MAX_RUNS,
        "map length": map_length <= zstd_bound(run_count * RUN.size),
    }
    wrong = [what for what, right in checks.items() if not right]
    if wrong:
        raise FormatError(f"the index header's {', '.join(wrong)} cannot be right")
    hashes = data[FIXED.size :]
    return IndexHeader(
        layer_id=hashlib.sha256(data).digest(),
        length=length,
        image_size=image_size,
        pack_length=pack_length,
        chunk_count=chunk_count,
        run_count=run_count,
        map_length=map_length,
        map_hash=map_hash,
        page_hashes=tuple(hashes[at : at + HASH_SIZE] for at in range(0, len(hashes), HASH_SIZE)),
    )


def header_length(start: bytes) -> int:
    """How long the header is whose first `FIXED.size` bytes are given.

    Raises:
        FormatError: not an index header, or one over the limit.
    """
    if len(start) < FIXED.size or not start.startswith(MAGIC):
        raise FormatError("these bytes are not the index of a layer")
    length: int = FIXED.unpack_from(start)[2]
    if not FIXED.size <= length <= MAX_HEADER_SIZE:
        raise FormatError(f"an index header of {length} bytes is over the limit")
    return length


def open_index(index: bytes) -> IndexHeader:
    """Return the header of an index of which all bytes are given.

    Raises:
        FormatError: see `read_header`.
    """
    return read_header(index[: header_length(index[: FIXED.size])])


def read_map(header: IndexHeader, stored: bytes) -> list[Run]:
    """Unpack the map, of which the caller has verified the hash.

    Raises:
        FormatError: it does not decompress to the length that the header says, or wrong runs.
    """
    data = decode_zstd(stored, header.run_count * RUN.size)
    return unpack_runs(data, blocks=header.image_size // BLOCK_SIZE, chunks=header.chunk_count)


def read_page(header: IndexHeader, page: int, data: bytes) -> list[Chunk]:
    """Unpack a page of the chunk table, of which the caller has verified the hash.

    Raises:
        FormatError: a wrong length or a wrong entry.
    """
    if len(data) != header.page_extent(page)[1]:
        raise FormatError("a page of a chunk table has a wrong length")
    return unpack_chunks(data, pack_length=header.pack_length)
