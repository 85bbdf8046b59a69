"""One layer, opened: its map in memory, its chunk table page by page, its chunks verified."""

from __future__ import annotations

import hashlib

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import Run
from p2pcloop.formats.chunk_table import ENTRIES_PER_PAGE, Chunk
from p2pcloop.formats.codec import decode
from p2pcloop.formats.index import IndexHeader, read_header, read_map, read_page
from p2pcloop.image.content import Content


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


class Layer:
    """The chunks of one layer.

    Attributes:
        header: of the layer's index.
    """

    def __init__(self, content: Content, header: IndexHeader) -> None:
        """Read and verify the map.

        Raises:
            Missing: the map is not here.
            FormatError: it is what was signed and yet cannot be right.
        """
        self._content = content
        self.header = header
        stored = _verified(
            content, header.length, header.map_length, header.map_hash, "the map of a layer"
        )
        self._runs: list[Run] = read_map(header, stored)
        self._pages: dict[int, list[Chunk]] = {}

    def take_runs(self) -> list[Run]:
        """Return the layer's map, which is forgotten here: once merged, it only costs memory."""
        runs, self._runs = self._runs, []
        return runs

    def chunk(self, number: int) -> Chunk:
        """Return the entry of a chunk.

        Raises:
            Missing: the page of the table is not here.
            FormatError: the page is what was signed and yet cannot be right.
        """
        page, entry = divmod(number, ENTRIES_PER_PAGE)
        if page not in self._pages:
            offset, length = self.header.page_extent(page)
            digest = self.header.page_hashes[page]
            data = _verified(self._content, offset, length, digest, "a page of a chunk table")
            self._pages[page] = read_page(self.header, page, data)
        return self._pages[page][entry]

    def read_chunk(self, number: int) -> bytes:
        """Return the decoded content of a chunk, verified.

        Raises:
            Missing: the chunk, or its page of the table, is not here or not right here.
            CorruptError: it does not match its hash wherever it comes from.
        """
        chunk = self.chunk(number)
        offset = self.header.index_length + chunk.offset
        stored = self._content.read(offset, chunk.length)
        try:
            data = decode(chunk.codec, stored, chunk.size)
        except FormatError:
            data = b""
        if hashlib.sha256(data).digest() != chunk.id:
            self._content.reject(offset, chunk.length, "a chunk")
        return data

    def close(self) -> None:
        """Close the layer's files."""
        self._content.close()


def _verified(content: Content, offset: int, length: int, digest: bytes, what: str) -> bytes:
    if not length:
        return b""
    data = content.read(offset, length)
    if hashlib.sha256(data).digest() != digest:
        content.reject(offset, length, what)
    return data
