"""One layer, opened: its map in memory, its chunk table page by page, its chunks verified."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from typing import Final, Protocol

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.block_map import LayerMap
from p2pcloop.formats.chunk_table import ENTRIES_PER_PAGE, PAGE_SIZE, UNFILTERED, Chunk, ChunkPage
from p2pcloop.formats.codec import decode
from p2pcloop.formats.index import IndexHeader, read_header, read_map, read_page
from p2pcloop.formats.lzma_chain import MAX_CHAIN_CHUNKS, MAX_CHAIN_SIZE, ChainDecoder
from p2pcloop.formats.seal import Seal
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.chain import Decode, OpenChains
from p2pcloop.image.content import Content
from p2pcloop.image.dictionary import Dictionary
from p2pcloop.store.unpacked_kernels import PageLike
from p2pcloop.words import tr

Elsewhere = Callable[[Chunk], bytes | None]
"""Returns the verified content of a chunk from another place on this machine, or None."""


def nowhere(_chunk: Chunk) -> None:
    """The `Elsewhere` that knows no other place."""


class Kept(Protocol):
    """Decoded chunks that an earlier boot has left here, by their ids (store/kept.py)."""

    def __contains__(self, chunk_id: bytes, /) -> bool: ...

    def read(self, chunk_id: bytes, size: int) -> bytes | None:
        """Return the content of a chunk, verified; None if it is not here."""


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
        return _if_right(chunk, self.decode_unverified(chunk, stored))

    def decode_next(
        self,
        chunk: Chunk,
        stored: bytes,
        decoder: ChainDecoder,
        before: Sequence[bytes] = (),
    ) -> bytes | None:
        """The same for a chunk of a chain.

        Args:
            decoder: has come to it, or to chunks before it.
            before: the content of these.
        """
        try:
            for content in before:
                decoder.skip(content)
            filtered = chunk.codec not in UNFILTERED
            data = decoder.decode(self._opened(chunk, stored), chunk.size, filtered=filtered)
        except (FormatError, MismatchError):
            data = None
        right = _if_right(chunk, data)
        decoder.broken = right is None
        return right

    def decode_unverified(self, chunk: Chunk, stored: bytes) -> bytes | None:
        """Return decoded bytes, right or wrong; None if they cannot be decoded, or not alone."""
        try:
            return decode(chunk.codec, self._opened(chunk, stored), chunk.size)
        except (FormatError, MismatchError):
            return None

    def _opened(self, chunk: Chunk, stored: bytes) -> bytes:
        return stored if self.seal is None else self.seal.open_chunk(chunk.offset, stored)


def _if_right(chunk: Chunk, data: bytes | None) -> bytes | None:
    return data if data is not None and hashlib.sha256(data).digest() == chunk.id else None


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
    return read_header(_verified(content, 0, length, layer_id, tr("the index header of a layer")))


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
    return _verified(content, offset, length, digest, tr("a page of a chunk table"))


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
        chains: OpenChains | None = None,
        kept: Kept | None = None,
        kernels: Sequence[PageLike] = (),
    ) -> None:
        """Read and verify the map.

        Args:
            content: the layer's bytes.
            header: of its index.
            seal: of the layer, if it is sealed.
            sources: the packs of the layers that the header names, in that order.
            elsewhere: called for each chunk that is missing.
            pages: keeps the pages of the chunk table; shared by the layers of an image.
            chains: keeps the decoders of chains; shared by the layers of an image.
            kept: decoded chunks of the image, or None.
            kernels: their pages may be the dictionary of a hot layer.

        Raises:
            Missing: the map is not here.
            FormatError: it is what was signed and yet cannot be right.
            MismatchError: it is sealed under another key.
        """
        self.header = header
        self._content = content
        self._elsewhere = elsewhere
        self._packs = (Pack(content, header.index_length, header.pack_length, seal), *sources)
        self._map = self.load_map()
        self._dictionary = Dictionary(self._map, kernels if header.hot else ())
        self._pages = pages or PageCache()
        self._chains = chains or OpenChains()
        self._kept = kept

    def load_map(self) -> LayerMap:
        """Read and verify the layer's map; errors as of the constructor."""
        header, pack = self.header, self._packs[0]
        stored = _verified(
            self._content,
            header.length,
            header.map_length,
            header.map_hash,
            tr("the map of a layer"),
        )
        return read_map(header, stored, seal=pack.seal)

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

    def place(self, number: int) -> ByteRange | None:
        """Where the stored bytes of a chunk lie, here or not; None if they are of no torrent.

        Errors as of `chunk`.
        """
        chunk = self.chunk(number)
        pack = self._packs[chunk.source]
        return pack.content.place(pack.start + chunk.offset, chunk.length)

    def stored_chunk(self, number: int) -> tuple[Pack, Chunk, bytes]:
        """Return the pack of a chunk, its entry, and its bytes as they are stored there.

        Raises:
            Missing: the chunk, or its page of the table, is not here.
        """
        chunk = self.chunk(number)
        pack = self._packs[chunk.source]
        return pack, chunk, pack.content.read(pack.start + chunk.offset, chunk.length)

    def is_kept(self, number: int) -> bool:
        """Whether `read_kept` has a chunk; errors as of `chunk`."""
        return self._kept is not None and self.chunk(number).id in self._kept

    def read_kept(self, number: int) -> bytes | None:
        """Return the content of a chunk, verified, if an earlier boot has kept it.

        Raises:
            Missing, FormatError: the same as `chunk`.
        """
        if self._kept is None:
            return None
        chunk = self.chunk(number)
        data = self._kept.read(chunk.id, chunk.size)
        if data is not None:
            pack = self._packs[chunk.source]
            pack.content.use(pack.start + chunk.offset, chunk.length)
        return data

    def read_chunk(self, number: int) -> bytes:
        """Return the decoded content of a chunk, verified; errors as of `read_chunks`."""
        *_, (_, data) = self.read_chunks(number)
        return data

    def read_chunks(self, number: int) -> Iterator[tuple[int, bytes]]:
        """Yield a chunk's number and its decoded content, verified.

        Of a chain the chunks before it come first, as far as they have to be decoded. Those that
        are here come even if later ones are missing: not all may fit into memory at once.

        Raises:
            Missing: the chunk, chunks before it in its chain, or their pages of the table are not
                here or not right here; of the chunks it names all that are not here.
            CorruptError: one does not match its hash, from any source.
            FormatError: the table is what was signed and yet cannot be right.
        """
        chunk = self.chunk(number)
        if not chunk.chained:
            yield number, self._read_alone(chunk)
            return
        numbers = self.needs(number)
        missing = {each: wanted for each in numbers if (wanted := self._missing(each))}
        if missing and (found := self._elsewhere(chunk)) is not None:
            yield number, found
            return
        yield from self._decode_chain(range(numbers[0], min(missing, default=number + 1)))
        if missing:
            raise Missing(list(missing.values()))

    def needs(self, number: int, before: Container[int] = ()) -> Sequence[int]:
        """The chunks whose stored bytes it takes to read a chunk: itself, last, and of a chain
        those before it that its decoder has not come to, without a dictionary that is here.

        Args:
            before: chunks that are read before it; neither they nor what they need are named.

        Raises:
            Missing: a page of the table is not here.
            FormatError: the table is what was signed and yet cannot be right.
        """
        at, chunk = number, self.chunk(number)
        size = chunk.size
        while chunk.follows:
            if (self.header.layer_id, at) in self._chains or at - 1 in before:
                break
            if at == self._dictionary.chunks and self._dictionary.is_here(self._entries(at)):
                break
            at -= 1
            if at < 0 or not (chunk := self.chunk(at)).chained:
                raise FormatError("a chain of chunks has no start")
            size += chunk.size
            if size > MAX_CHAIN_SIZE or number - at >= MAX_CHAIN_CHUNKS:
                raise FormatError("a chain of chunks is too long")
        return range(at, number + 1)

    def lacking(self, number: int, before: set[int]) -> dict[int, ByteRange]:
        """The ranges to fetch before a chunk can be read, by chunk; none if it is on this machine.

        Args:
            before: chunks whose stored bytes are here or are fetched before; what this chunk needs
                is added.

        Raises:
            Missing, FormatError: the same as `needs`.
        """
        if number in before:
            return {}
        needed = self.needs(number, before)
        found = {each: wanted for each in needed if (wanted := self._missing(each))}
        if found and self._elsewhere(self.chunk(number)) is not None:
            return {}
        before.update(needed)
        return found

    def _read_alone(self, chunk: Chunk) -> bytes:
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

    def _decode_chain(self, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Decode chunks of a chain, the first of which starts it or has a decoder at it."""
        for number in numbers:
            decode = self._prepare(number)
            if decode is None:  # the kernel has just gone: its pages are needed
                yield from self.read_chunks(number)
                continue
            data = decode()
            if data is None:
                chunk, pack = self.chunk(number), self._packs[0]
                pack.content.reject(pack.start + chunk.offset, chunk.length, "a chunk")
            yield number, data

    def prepare_next(self, number: int) -> Decode | None:
        """Prepare to decode the next chunk of a chain on another thread.

        Returns:
            What decodes it. It must be called before all that is prepared later, and before any
            other chunk of a chain is read. None if the chunk is not the next one, or not here.
        """
        try:
            is_next = self.chunk(number).chained and len(self.needs(number)) == 1
            return self._prepare(number) if is_next else None
        except (Missing, FormatError):
            return None

    def _prepare(self, number: int) -> Decode | None:
        """What decodes a chunk that `needs` no other; None if its dictionary is here no more."""
        chunk, pack = self.chunk(number), self._packs[0]
        place, before = (self.header.layer_id, number), None
        is_behind = chunk.follows and number == self._dictionary.chunks
        if is_behind and place not in self._chains:
            before = self._dictionary.contents(self._entries(number))
            if before is None:
                return None
        stored = pack.content.read(pack.start + chunk.offset, chunk.length)
        decoder = self._chains.step(
            place,
            starts=before is not None or not chunk.follows,
            ends=number + 1 == self.header.chunk_count,
        )
        return partial(pack.decode_next, chunk, stored, decoder, before or ())

    def _entries(self, count: int) -> list[Chunk]:
        """The first entries of the table; errors as of `chunk`."""
        return [self.chunk(number) for number in range(count)]

    def missing_chunk(self, number: int) -> ByteRange | None:
        """Return the range of a chunk's stored bytes; None if the chunk is on this machine.

        To read a chunk of a chain needs more than its own bytes: see `lacking`.

        Raises:
            Missing: its page of the table is not here.
            FormatError: the page is what was signed and yet cannot be right.
        """
        wanted = self._missing(number)
        if wanted is None or self._elsewhere(self.chunk(number)) is not None:
            return None
        return wanted

    def _missing(self, number: int) -> ByteRange | None:
        chunk = self.chunk(number)
        pack = self._packs[chunk.source]
        return pack.content.missing(pack.start + chunk.offset, chunk.length)

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
