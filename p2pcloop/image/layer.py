"""One layer, opened: its map in memory, its chunk table page by page, its chunks verified."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.block_map import LayerMap
from p2pcloop.formats.chunk_table import ENTRIES_PER_PAGE, PAGE_SIZE, Chunk, ChunkPage
from p2pcloop.formats.codec import decode
from p2pcloop.formats.index import IndexHeader, read_header, read_map, read_page
from p2pcloop.formats.seal import Seal
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.content import Content

Elsewhere = Callable[[Chunk], bytes | None]
"""Returns the verified content of a chunk from another place on this machine, or None."""


def nowhere(_chunk: Chunk) -> None:
    """The `Elsewhere` that knows no other place."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack, in the content of the layer that it belongs to.

    Attributes:
        content: index and pack of that layer, end to end.
        start: the offset of the pack in it: the length of the index.
        length: bytes of the pack.
        seal: of that layer, if its chunks are sealed.
    """

    content: Content
    start: int
    length: int
    seal: Seal | None = None

    def decode(self, chunk: Chunk, stored: bytes) -> bytes | None:
        """Return the content of a chunk of this pack, verified; None if the bytes are wrong."""
        data = self.decode_unverified(chunk, stored)
        return data if data is not None and hashlib.sha256(data).digest() == chunk.id else None

    def decode_unverified(self, chunk: Chunk, stored: bytes) -> bytes | None:
        """Return decoded bytes, right or wrong; None if they cannot be decoded."""
        try:
            if self.seal is not None:
                stored = self.seal.open_chunk(chunk.offset, stored)
            return decode(chunk.codec, stored, chunk.size)
        except (FormatError, MismatchError):
            return None


def load_header(content: Content, layer_id: bytes, length: int) -> IndexHeader:
    """Read and verify the index header of a layer.

    Args:
        content: the layer's bytes.
        layer_id: SHA-256 that the header must have.
        length: bytes of the header.

    Raises:
        Missing: the header is not here.
        FormatError: it is what was signed and yet cannot be right.
    """
    return read_header(_verified(content, 0, length, layer_id, "the index header of a layer"))


def load_page(
    content: Content,
    header: IndexHeader,
    number: int,
    *,
    seal: Seal | None = None,
    source_lengths: Sequence[int] = (),
) -> ChunkPage:
    """Read, verify and check a page of the chunk table of a layer.

    Args:
        content: the layer's bytes.
        header: of its index.
        number: of the page.
        seal: of the layer, if it is sealed.
        source_lengths: bytes of each source's pack.

    Raises:
        Missing: the page is not here.
        FormatError: it is what was signed and yet cannot be right.
        MismatchError: it is sealed under another key.
    """
    data = read_page_bytes(content, header, number)
    return read_page(header, number, data, source_lengths=source_lengths, seal=seal)


def read_page_bytes(content: Content, header: IndexHeader, number: int) -> bytes:
    """Read and verify a page as it is stored.

    Raises:
        Missing: the page is not here.
    """
    offset, length = header.page_extent(number)
    digest = header.page_hashes[number]
    return _verified(content, offset, length, digest, "a page of a chunk table")


class PageCache:
    """The pages of chunk tables that were read last, of all layers of an image together.

    A page that was dropped is read again when it is needed. If it was fetched as an exact range,
    and its pieces are not here yet, it is fetched again. That happens only with images of more than
    about 170,000 chunks.
    """

    LIMIT: Final = (8 << 20) // PAGE_SIZE

    def __init__(self) -> None:
        self._pages: OrderedDict[tuple[bytes, int], ChunkPage] = OrderedDict()

    def get(self, layer_id: bytes, number: int) -> ChunkPage | None:
        """A page that was read, or None; it becomes the one used last."""
        page = self._pages.get((layer_id, number))
        if page is not None:
            self._pages.move_to_end((layer_id, number))
        return page

    def put(self, layer_id: bytes, number: int, page: ChunkPage) -> None:
        """Keep a page; if there are too many, drop the one that was unused for longest."""
        self._pages[layer_id, number] = page
        if len(self._pages) > self.LIMIT:
            self._pages.popitem(last=False)


class Layer:
    """The chunks of one layer.

    Attributes:
        header: of the layer's index.
    """

    def __init__(
        self,
        content: Content,
        header: IndexHeader,
        *,
        seal: Seal | None = None,
        sources: Sequence[Pack] = (),
        elsewhere: Elsewhere = nowhere,
        pages: PageCache | None = None,
    ) -> None:
        """Read and verify the map.

        Args:
            content: the layer's bytes.
            header: of its index.
            seal: of the layer, if it is sealed.
            sources: the packs of the layers that the header names, in that order.
            elsewhere: called for each chunk that is missing.
            pages: keeps the pages of the chunk table; shared by the layers of an image.

        Raises:
            Missing: the map is not here.
            FormatError: it is what was signed and yet cannot be right.
            MismatchError: it is sealed under another key.
        """
        self.header = header
        self._content = content
        self._elsewhere = elsewhere
        self._packs = (Pack(content, header.index_length, header.pack_length, seal), *sources)
        stored = _verified(
            content, header.length, header.map_length, header.map_hash, "the map of a layer"
        )
        self._map = read_map(header, stored, seal=seal)
        self._pages = pages or PageCache()

    def take_map(self) -> LayerMap:
        """Return the layer's map and forget it: once it is merged, it would only cost memory."""
        layer_map, self._map = self._map, LayerMap.from_runs([])
        return layer_map

    def chunk(self, number: int) -> Chunk:
        """Return the entry of a chunk.

        Raises:
            Missing: the page of the table is not here.
            FormatError: the page is what was signed and yet cannot be right.
        """
        number, entry = divmod(number, ENTRIES_PER_PAGE)
        page = self._pages.get(self.header.layer_id, number)
        if page is None:
            page = load_page(
                self._content,
                self.header,
                number,
                seal=self._packs[0].seal,
                source_lengths=[pack.length for pack in self._packs[1:]],
            )
            self._pages.put(self.header.layer_id, number, page)
        return page[entry]

    def stored_chunk(self, number: int) -> tuple[Pack, Chunk, bytes]:
        """Return the pack of a chunk, its entry, and its bytes as they are stored there.

        Raises:
            Missing: the chunk, or its page of the table, is not here.
        """
        chunk = self.chunk(number)
        pack = self._packs[chunk.source]
        return pack, chunk, pack.content.read(pack.start + chunk.offset, chunk.length)

    def read_chunk(self, number: int) -> bytes:
        """Return the decoded content of a chunk, verified.

        Raises:
            Missing: the chunk, or its page of the table, is not here or not right here.
            CorruptError: it does not match its hash, from any source.
        """
        chunk = self.chunk(number)
        pack = self._packs[chunk.source]
        offset = pack.start + chunk.offset
        try:
            stored = pack.content.read(offset, chunk.length)
        except Missing:
            found = self._elsewhere(chunk)
            if found is None:
                raise
            return found
        data = pack.decode(chunk, stored)
        if data is None:
            pack.content.reject(offset, chunk.length, "a chunk")
        return data

    def missing_chunk(self, number: int) -> ByteRange | None:
        """Return the range to fetch before a chunk can be read; None if it is on this machine.

        Raises:
            Missing: its page of the table is not here.
            FormatError: the page is what was signed and yet cannot be right.
        """
        chunk = self.chunk(number)
        pack = self._packs[chunk.source]
        wanted = pack.content.missing(pack.start + chunk.offset, chunk.length)
        return None if wanted is None or self._elsewhere(chunk) is not None else wanted

    def close(self) -> None:
        """Close the files of the layer and of its sources."""
        for pack in self._packs:
            pack.content.close()


def _verified(content: Content, offset: int, length: int, digest: bytes, what: str) -> bytes:
    if not length:
        return b""
    data = content.read(offset, length)
    if hashlib.sha256(data).digest() != digest:
        content.reject(offset, length, what)
    return data
