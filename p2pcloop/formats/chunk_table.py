"""Chunk tables: the place of each chunk in a pack, and its hash (docs/formats/index.md).

Entries are of one size and stand in pages of 256, so that a reader fetches and verifies only the
pages that it needs. A chunk lies in the layer's own pack, or in that of a source: another layer,
which the index names.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Container, Sequence
from typing import overload

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import MAX_BLOCKS_PER_CHUNK
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE, MAX_CHUNK_SIZE
from p2pcloop.words import tr

ENTRY = struct.Struct("<QIHBB32s")
"""offset in the pack, stored length, blocks, codec, source, SHA-256 of the content."""

ENTRIES_PER_PAGE = 256
PAGE_SIZE = ENTRIES_PER_PAGE * ENTRY.size
MAX_STORED_SIZE = MAX_CHUNK_SIZE + (64 << 10)
"""Bytes by which incompressible content grows at most, in any codec."""


def max_chained_length(size: int) -> int:
    """The stored bytes that a chunk of a chain of `size` bytes may have, sealed or not. LZMA2 needs
    3 bytes for each 64 KiB of incompressible content."""
    return size + size // 256 + 1024


class Codec(enum.IntEnum):
    """How a chunk's bytes are stored."""

    NONE = 0
    ZLIB = 1
    ZSTD = 2
    XZ = 3
    LZ4 = 4
    LZO = 5
    CHAIN_START = 6
    CHAIN_NEXT = 7
    UNFILTERED_START = 8
    UNFILTERED_NEXT = 9


FOLLOWING = frozenset((Codec.CHAIN_NEXT, Codec.UNFILTERED_NEXT))
"""The codecs of chunks that are decoded after those before them."""

CHAINED = FOLLOWING | {Codec.CHAIN_START, Codec.UNFILTERED_START}
"""The codecs of chunks of chains: they came with version 4."""

UNFILTERED = frozenset((Codec.UNFILTERED_START, Codec.UNFILTERED_NEXT))
"""The codecs of chunks of chains that have not passed the filter for x86 code."""

FIRST_CODECS = frozenset((Codec.NONE, Codec.ZLIB, Codec.ZSTD))
"""The codecs of indexes of version 1 and 2."""

THIRD_CODECS = frozenset(Codec) - CHAINED
"""The codecs of indexes of version 3."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One entry.

    Attributes:
        offset: of its stored bytes in the pack.
        length: of its stored bytes.
        blocks: 4 KiB blocks that they decode to.
        codec: of the stored bytes.
        id: SHA-256 of the decoded bytes.
        source: 0 for the layer's own pack, k for that of its k-th source.
    """

    offset: int
    length: int
    blocks: int
    codec: Codec
    id: bytes
    source: int = 0

    @property
    def size(self) -> int:
        """Decoded bytes."""
        return self.blocks * BLOCK_SIZE

    @property
    def memory(self) -> int:
        """Bytes of a decoding that waits for its turn: stored ones now, decoded ones later."""
        return self.size + self.length

    @property
    def follows(self) -> bool:
        """Whether it is one of a chain, and not the first."""
        return self.codec in FOLLOWING

    @property
    def chained(self) -> bool:
        """Whether it can only be decoded after those before it in its chain."""
        return self.codec in CHAINED


def pack_chunks(chunks: Sequence[Chunk]) -> bytes:
    """Write entries, 48 bytes each."""
    return b"".join(
        ENTRY.pack(c.offset, c.length, c.blocks, c.codec, c.source, c.id) for c in chunks
    )


class ChunkPage(Sequence[Chunk]):
    """The entries of a page, each checked.

    They are kept as they are stored, 48 bytes each, and parsed when they are used: an object for
    each would take 235 bytes.
    """

    __slots__ = ("data",)

    def __init__(
        self,
        data: bytes,
        *,
        pack_lengths: Sequence[int],
        codecs: Container[int] = frozenset(Codec),
    ) -> None:
        """Check all entries.

        Args:
            data: 48 bytes an entry.
            pack_lengths: bytes of the layer's own pack, and of each source's.
            codecs: those that the index's version has.

        Raises:
            FormatError: an unknown codec or source, a length over its limit, or an extent outside
                its pack.
        """
        _check_entries(data, pack_lengths, codecs)
        self.data = data

    def __len__(self) -> int:
        return len(self.data) // ENTRY.size

    @overload
    def __getitem__(self, entry: int) -> Chunk: ...
    @overload
    def __getitem__(self, entry: slice) -> list[Chunk]: ...
    def __getitem__(self, entry: int | slice) -> Chunk | list[Chunk]:
        if isinstance(entry, slice):
            return [self[each] for each in range(*entry.indices(len(self)))]
        at = range(len(self))[entry] * ENTRY.size
        offset, length, blocks, codec, source, chunk_id = ENTRY.unpack_from(self.data, at)
        return Chunk(offset, length, blocks, Codec(codec), chunk_id, source)


def _check_entries(data: bytes, pack_lengths: Sequence[int], codecs: Container[int]) -> None:
    for offset, length, blocks, codec, source, _ in ENTRY.iter_unpack(data):
        if codec not in codecs:
            raise FormatError(
                tr(
                    "a chunk is stored with codec {codec}, which an index of this version cannot"
                    " have",
                    codec=codec,
                )
            )
        if not 1 <= blocks <= MAX_BLOCKS_PER_CHUNK or not 1 <= length <= MAX_STORED_SIZE:
            raise FormatError(
                tr(
                    "a chunk claims {blocks} blocks in {length} bytes, over the limits",
                    blocks=blocks,
                    length=length,
                )
            )
        if codec in CHAINED:
            if source:
                raise FormatError("a chunk of a chain lies in another layer than its chain")
            if length > max_chained_length(blocks * BLOCK_SIZE):
                raise FormatError(
                    tr(
                        "a chunk of a chain claims {blocks} blocks in {length} bytes",
                        blocks=blocks,
                        length=length,
                    )
                )
        if source >= len(pack_lengths):
            raise FormatError(
                tr(
                    "a chunk lies in source {source} of a layer that has {pack_lengths_count}",
                    source=source,
                    pack_lengths_count=len(pack_lengths) - 1,
                )
            )
        if offset + length > pack_lengths[source]:
            raise FormatError("a chunk lies outside its pack")
