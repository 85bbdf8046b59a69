"""Indexes: the map and the chunk table of one layer, in one file (docs/formats/index.md).

The header comes first. It holds the SHA-256 of the map and of each page of the chunk table; its
own SHA-256 is the layer's id, which the signed manifest names. So the map is read whole and the
table page by page, and each part is verified when it is read.

Version 1 is written if it is sufficient. Version 2 adds sources (other layers, whose packs hold
chunks of this one) and sealing (formats/seal.py). Version 3 is version 2 with chunks of more
codecs, and version 4 with chains: a reader that does not know them refuses the image when it opens
it, not at a later read.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple, overload

import zstandard

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import RUN, LayerMap, Run, pack_runs, unpack_runs
from p2pcloop.formats.chunk_table import (
    ENTRIES_PER_PAGE,
    ENTRY,
    FIRST_CODECS,
    PAGE_SIZE,
    THIRD_CODECS,
    Chunk,
    ChunkPage,
    Codec,
    pack_chunks,
)
from p2pcloop.formats.codec import decode_zstd
from p2pcloop.formats.seal import SALT_SIZE, TAG_SIZE, Seal
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE
from p2pcloop.words import tr

MAGIC = b"P2PCIDX\0"
PLAIN_VERSION = 1
EXTENDED_VERSION = 2
THIRD_VERSION = 3
VERSION = 4
FIXED = struct.Struct("<8sIIQQIIII32s")
"""magic, version, header length, image size, pack length, chunk count, entries per page,
run count, stored map length, SHA-256 of the stored map."""

EXTENSION = struct.Struct("<II32s")
"""Of version 2 and later: flags, source count, salt."""

SEALED = 1
HASH_SIZE = 32
MAX_SOURCES = 255
MAX_CHUNKS = 1 << 24
MAX_RUNS = 1 << 20
_MAX_PAGES = MAX_CHUNKS // ENTRIES_PER_PAGE
MAX_HEADER_SIZE = FIXED.size + EXTENSION.size + HASH_SIZE * (MAX_SOURCES + _MAX_PAGES)


def zstd_bound(size: int) -> int:
    """Bytes that zstd makes of `size` bytes at most (ZSTD_COMPRESSBOUND of zstd.h)."""
    return size + (size >> 8) + 128


MAX_INDEX_SIZE = (
    MAX_HEADER_SIZE
    + zstd_bound(MAX_RUNS * RUN.size)
    + MAX_CHUNKS * ENTRY.size
    + (1 + _MAX_PAGES) * TAG_SIZE
)


class HashList(Sequence[bytes]):
    """Hashes as they are stored, 32 bytes each; an object would take 105."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        """Take whole hashes."""
        self._data = data

    def __len__(self) -> int:
        return len(self._data) // HASH_SIZE

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...
    def __getitem__(self, number: int | slice) -> bytes | list[bytes]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        at = range(len(self))[number] * HASH_SIZE
        return self._data[at : at + HASH_SIZE]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashList) and self._data == other._data

    def __hash__(self) -> int:
        return hash(self._data)


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """A header, checked; offsets are bytes from the start of the index.

    Attributes:
        layer_id: SHA-256 of the header.
        length: bytes of the header.
        image_size: bytes of the device.
        pack_length: bytes of the pack.
        chunk_count: entries of the chunk table.
        run_count: runs of the map.
        map_length: bytes of the map as it is stored.
        map_hash: SHA-256 of the map as it is stored.
        page_hashes: SHA-256 of each page of the chunk table as it is stored.
        sources: ids of the other layers in whose packs chunks lie; an entry's source counts from 1.
        salt: of the layer's key, if map, pages and chunks are sealed; else None.
        version: of the index.
    """

    layer_id: bytes
    length: int
    image_size: int
    pack_length: int
    chunk_count: int
    run_count: int
    map_length: int
    map_hash: bytes
    page_hashes: HashList
    sources: tuple[bytes, ...] = ()
    salt: bytes | None = None
    version: int = PLAIN_VERSION

    @property
    def codecs(self) -> frozenset[Codec]:
        """The codecs that its chunks may have."""
        if self.version == VERSION:
            return frozenset(Codec)
        return THIRD_CODECS if self.version == THIRD_VERSION else FIRST_CODECS

    @property
    def hot(self) -> bool:
        """Whether it is of a hot layer: what it maps reads the same without it."""
        return self.version == VERSION

    @property
    def tag_size(self) -> int:
        """Bytes by which each stored part is longer than its content."""
        return 0 if self.salt is None else TAG_SIZE

    @property
    def index_length(self) -> int:
        """Bytes of the whole index."""
        tags = len(self.page_hashes) * self.tag_size
        return self.length + self.map_length + self.chunk_count * ENTRY.size + tags

    def page_extent(self, page: int) -> tuple[int, int]:
        """Offset and length of a page of the chunk table."""
        entries = min(ENTRIES_PER_PAGE, self.chunk_count - page * ENTRIES_PER_PAGE)
        offset = self.length + self.map_length + page * (PAGE_SIZE + self.tag_size)
        return offset, entries * ENTRY.size + self.tag_size


def build_index(
    runs: Sequence[Run],
    chunks: Sequence[Chunk],
    *,
    image_size: int,
    pack_length: int,
    sources: Sequence[bytes] = (),
    seal: Seal | None = None,
) -> bytes:
    """Write the index of a layer, of the lowest sufficient version.

    Args:
        runs: of the map, in order, without overlaps.
        chunks: their entries, by their numbers in the map.
        image_size: bytes of the device.
        pack_length: bytes of the layer's own pack.
        sources: ids of the layers in whose packs chunks lie, without repeats.
        seal: seals map and pages; the pack's chunks are sealed already, with the same one. It
            must not have sealed another index.

    Raises:
        FormatError: more runs, chunks or sources than the format holds, or a chunk in a source
            that is not named, or that holds a chain of which it is a part.
    """
    _check_content(runs, chunks, sources)
    stored_map = zstandard.ZstdCompressor(level=19).compress(pack_runs(runs))
    table = pack_chunks(chunks)
    pages = [table[at : at + PAGE_SIZE] for at in range(0, len(table), PAGE_SIZE)]
    if seal is not None:
        stored_map = seal.seal_map(stored_map)
        pages = [seal.seal_page(number, page) for number, page in enumerate(pages)]
    version = _version_for(chunks, sources, seal)
    extension = b"" if version == PLAIN_VERSION else _pack_extension(sources, seal)
    fixed = FIXED.pack(
        MAGIC,
        version,
        FIXED.size + len(extension) + HASH_SIZE * len(pages),
        image_size,
        pack_length,
        len(chunks),
        ENTRIES_PER_PAGE,
        len(runs),
        len(stored_map),
        hashlib.sha256(stored_map).digest(),
    )
    hashes = b"".join(hashlib.sha256(page).digest() for page in pages)
    return fixed + extension + hashes + stored_map + b"".join(pages)


def _check_content(runs: Sequence[Run], chunks: Sequence[Chunk], sources: Sequence[bytes]) -> None:
    """Refuse what the format cannot hold; see `build_index`."""
    if len(chunks) > MAX_CHUNKS or len(runs) > MAX_RUNS or len(sources) > MAX_SOURCES:
        raise FormatError(
            tr(
                "a layer of {chunks_count} chunks, {runs_count} runs and {sources_count}"
                " sources is over the limits of {max_chunks}, {max_runs} and {max_sources}",
                chunks_count=len(chunks),
                runs_count=len(runs),
                sources_count=len(sources),
                max_chunks=MAX_CHUNKS,
                max_runs=MAX_RUNS,
                max_sources=MAX_SOURCES,
            )
        )
    if any(chunk.source > len(sources) for chunk in chunks):
        raise FormatError("a chunk lies in a source that the layer does not name")
    if any(chunk.source and chunk.chained for chunk in chunks):
        raise FormatError("a chunk of a chain lies in another layer than its chain")
    if len(set(sources)) < len(sources):
        raise FormatError("a layer names one source twice")


def _version_for(chunks: Sequence[Chunk], sources: Sequence[bytes], seal: Seal | None) -> int:
    codecs = {chunk.codec for chunk in chunks}
    if not codecs <= THIRD_CODECS:
        return VERSION
    if not codecs <= FIRST_CODECS:
        return THIRD_VERSION
    return EXTENDED_VERSION if sources or seal is not None else PLAIN_VERSION


def _pack_extension(sources: Sequence[bytes], seal: Seal | None) -> bytes:
    """The part of the header that version 2 and later add."""
    flags, salt = (0, bytes(SALT_SIZE)) if seal is None else (SEALED, seal.salt)
    return EXTENSION.pack(flags, len(sources), salt) + b"".join(sources)


class _Fixed(NamedTuple):
    """The fields of `FIXED`."""

    magic: bytes
    version: int
    length: int
    image_size: int
    pack_length: int
    chunk_count: int
    per_page: int
    run_count: int
    map_length: int
    map_hash: bytes

    def checks(self, tag_size: int) -> dict[str, bool]:
        """What is to be right of them, and whether it is; `tag_size` is that of a sealed map."""
        aligned = self.image_size % BLOCK_SIZE == 0
        most = zstd_bound(self.run_count * RUN.size) + tag_size
        return {
            "image size": aligned and 0 < self.image_size <= MAX_IMAGE_SIZE,
            "pack length": self.pack_length <= MAX_IMAGE_SIZE,
            "chunk count": self.chunk_count <= MAX_CHUNKS,
            "entries per page": self.per_page == ENTRIES_PER_PAGE,
            "run count": self.run_count <= MAX_RUNS,
            "map length": self.map_length <= most,
        }


def read_header(data: bytes) -> IndexHeader:
    """Check the bytes of a header whole and return the header.

    Raises:
        FormatError: not an index header, of an unknown version, or over a limit.
    """
    if len(data) < FIXED.size or not data.startswith(MAGIC):
        raise FormatError("these bytes are not the index of a layer")
    fixed = _Fixed(*FIXED.unpack_from(data))
    if not PLAIN_VERSION <= fixed.version <= VERSION:
        raise FormatError(
            tr(
                "the index is of version {version}; this program reads 1 to {version2}",
                version=fixed.version,
                version2=VERSION,
            ),
            hint="a newer p2pcloop may read it",
        )
    extended = fixed.version >= EXTENDED_VERSION
    sources, salt, at = _read_extension(data) if extended else ((), None, FIXED.size)
    pages = -(-fixed.chunk_count // ENTRIES_PER_PAGE)
    checks = {"header length": fixed.length == len(data) == at + HASH_SIZE * pages}
    checks |= fixed.checks(tag_size=0 if salt is None else TAG_SIZE)
    wrong = [what for what, right in checks.items() if not right]
    if wrong:
        raise FormatError(tr("the index header's {wrong} cannot be right", wrong=", ".join(wrong)))
    return IndexHeader(
        layer_id=hashlib.sha256(data).digest(),
        length=fixed.length,
        image_size=fixed.image_size,
        pack_length=fixed.pack_length,
        chunk_count=fixed.chunk_count,
        run_count=fixed.run_count,
        map_length=fixed.map_length,
        map_hash=fixed.map_hash,
        page_hashes=HashList(data[at:]),
        sources=sources,
        salt=salt,
        version=fixed.version,
    )


def _read_extension(data: bytes) -> tuple[tuple[bytes, ...], bytes | None, int]:
    """Return the sources, the salt of a sealed layer, and the offset of the page hashes."""
    at = FIXED.size + EXTENSION.size
    if len(data) < at:
        raise FormatError("the index header's header length cannot be right")
    flags, count, salt = EXTENSION.unpack_from(data, FIXED.size)
    end = at + HASH_SIZE * count
    sources = _split(data[at:end])
    checks = {
        "flags": flags in (0, SEALED),
        "source count": count <= MAX_SOURCES and end <= len(data),
        "sources": len(set(sources)) == len(sources),
        "salt": flags == SEALED or not any(salt),
    }
    wrong = [what for what, right in checks.items() if not right]
    if wrong:
        raise FormatError(tr("the index header's {wrong} cannot be right", wrong=", ".join(wrong)))
    return sources, salt if flags == SEALED else None, end


def _split(hashes: bytes) -> tuple[bytes, ...]:
    return tuple(hashes[at : at + HASH_SIZE] for at in range(0, len(hashes), HASH_SIZE))


def header_length(start: bytes) -> int:
    """The length of a header, by its first `FIXED.size` bytes.

    Raises:
        FormatError: not an index header, or one over the limit.
    """
    if len(start) < FIXED.size or not start.startswith(MAGIC):
        raise FormatError("these bytes are not the index of a layer")
    length: int = FIXED.unpack_from(start)[2]
    if not FIXED.size <= length <= MAX_HEADER_SIZE:
        raise FormatError(tr("an index header of {length} bytes is over the limit", length=length))
    return length


def open_index(index: bytes) -> IndexHeader:
    """Return the header of a whole index.

    Raises:
        FormatError: see `read_header`.
    """
    return read_header(index[: header_length(index[: FIXED.size])])


def read_map(header: IndexHeader, stored: bytes, *, seal: Seal | None = None) -> LayerMap:
    """Unpack the map, whose hash the caller has verified.

    Args:
        header: of the index.
        stored: the map's bytes.
        seal: of the layer, where it is sealed.

    Raises:
        FormatError: it does not decompress to the length in the header, or its runs are wrong.
        MismatchError: it is sealed under another key.
    """
    if seal is not None:
        stored = seal.open_map(stored)
    data = decode_zstd(stored, header.run_count * RUN.size)
    return unpack_runs(data, blocks=header.image_size // BLOCK_SIZE, chunks=header.chunk_count)


def read_page(
    header: IndexHeader,
    page: int,
    data: bytes,
    *,
    source_lengths: Sequence[int] = (),
    seal: Seal | None = None,
) -> ChunkPage:
    """Unpack a page of the chunk table, whose hash the caller has verified.

    Args:
        header: of the index.
        page: its number.
        data: its bytes.
        source_lengths: bytes of each source's pack.
        seal: of the layer, where it is sealed.

    Raises:
        FormatError: a wrong length or a wrong entry.
        MismatchError: it is sealed under another key.
    """
    if len(data) != header.page_extent(page)[1]:
        raise FormatError("a page of a chunk table has a wrong length")
    if seal is not None:
        data = seal.open_page(page, data)
    lengths = (header.pack_length, *source_lengths)
    return ChunkPage(data, pack_lengths=lengths, codecs=header.codecs)
