"""Chunks that other layers of this home have: no need to fetch them, nor to pack them again.

The search covers the layers of known manifests, if the pages of their chunk tables are here.
For each chunk it keeps 40 bits of its id and 24 bits for its place, 8 bytes in all, sorted; the
rest is read again from the page when it is needed. It covers layers of up to `MAX_PAGES` pages in
all, whether these are here or not: 8 MiB of memory for 2^20 chunks, 64 GiB of images in chunks of
64 KiB. The keys are loaded at the first search, newest manifest first: 30 ms for 28,000 chunks, 1
to 3 s for the largest number.

A result is only a hint: the reader compares the chunk with its id, and fetches it if it does not
match, as if it had not been found.
"""

from __future__ import annotations

import logging
import sys
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from p2pcloop.errors import P2pcloopError, StorageError
from p2pcloop.formats.chunk_table import ENTRIES_PER_PAGE, ENTRY, Chunk, ChunkPage
from p2pcloop.formats.index import IndexHeader
from p2pcloop.formats.manifest import ID_SIZE, LayerRef, Manifest, open_manifest
from p2pcloop.formats.seal import Seal, key_check
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.content import StoredContent
from p2pcloop.image.layer import Pack, load_header, load_page, read_page_bytes
from p2pcloop.store.home import Home
from p2pcloop.store.lease import Lease

_log = logging.getLogger(__name__)

MAX_MANIFESTS = 256
"""How many manifests are searched, the newest ones; of each, all layers."""

MAX_PAGES = (1 << 20) // ENTRIES_PER_PAGE
_PLACE_BITS = 24
_PLACE = (1 << _PLACE_BITS) - 1
_SORTED_AT_ONCE = 1 << 16
"""Keys of one sorted array: few enough that sorting takes little memory."""

_CANDIDATES = 8
"""Places of one id that are tried: a hostile table may hold one id a million times."""

_OPEN_CONTENTS = 16
_PARSED_PAGES = 16


@dataclass(frozen=True, slots=True)
class KnownChunk:
    """A chunk, and the layer in whose pack it lies.

    Attributes:
        ref: that layer; not all of it need be here.
        chunk: its entry, as in that layer's own table (`source` is 0).
        seal: of that layer, if its chunks are sealed.
    """

    ref: LayerRef
    chunk: Chunk
    seal: Seal | None


@dataclass(frozen=True, slots=True)
class _KnownLayer:
    ref: LayerRef
    header: IndexHeader
    seal: Seal | None


class KnownChunks:
    """Finds chunks by their ids in all layers of a home."""

    def __init__(self, home: Home, *, secrets: Iterable[bytes] = ()) -> None:
        """Nothing is read yet.

        Args:
            home: whose manifests and torrents are searched.
            secrets: of private images; the sealed layers of other images are skipped.
        """
        self._home = home
        self._secrets = {key_check(secret): secret for secret in secrets}
        self._loaded = False
        self._refs: dict[bytes, LayerRef] = {}
        self._layers: dict[bytes, _KnownLayer] = {}
        self._pages: list[tuple[_KnownLayer, int]] = []
        self._keys: list[array[int]] = []
        self._looked = 0
        self._contents: dict[LayerRef, StoredContent] = {}
        self._open: OrderedDict[LayerRef, StoredContent] = OrderedDict()
        self._parsed: OrderedDict[int, ChunkPage] = OrderedDict()
        self._leases: dict[bytes, Lease] = {}

    def find(self, chunk_id: bytes) -> Iterator[KnownChunk]:
        """Yield the places of a chunk where it can be decoded alone, a few at most."""
        if not self._loaded:
            self._loaded = True
            self._load()
            self.close()
            self._contents.clear()  # a search does not count as a use
        for place in islice(self._places(chunk_id), _CANDIDATES):
            known = self._resolve(place)
            if known is not None and known.chunk.id == chunk_id and not known.chunk.chained:
                yield known

    def is_here(self, known: KnownChunk) -> bool:
        """Whether its stored bytes are here and durable."""
        offset = known.ref.index_length + known.chunk.offset
        return self._content(known.ref).has(offset, known.chunk.length)

    def read(self, chunk: Chunk) -> bytes | None:
        """Return the content of a chunk from another place on this machine; None if there is none.

        See `image.layer.Elsewhere`.
        """
        for known in self.find(chunk.id):
            data = self._decode(known)  # None: the chunk is fetched, as if it had not been found
            if data is not None and len(data) == chunk.size:
                self._hold(known.ref.torrent)
                return data
        return None

    def contradicts(self, known: KnownChunk) -> bool:
        """Whether the chunk's bytes are here and do not match its entry: a table may lie."""
        return self.is_here(known) and self._decode(known) is None

    def _decode(self, known: KnownChunk) -> bytes | None:
        """The content of a chunk, verified; None if it is not here, or wrong."""
        content = self._content(known.ref)
        pack = Pack(content, known.ref.index_length, known.ref.pack_length, known.seal)
        try:
            stored = content.read(pack.start + known.chunk.offset, known.chunk.length)
        except (Missing, P2pcloopError):
            return None
        return pack.decode(known.chunk, stored)

    def _hold(self, torrent: bytes) -> None:
        """Take a lease on a torrent that was of use, so that it is not evicted."""
        if torrent not in self._leases:
            try:
                self._leases[torrent] = Lease(self._home, torrent)
            except StorageError as err:
                _log.warning("what is used of another image may be evicted: %s", err)

    def used(self) -> dict[bytes, bytes]:
        """The pieces of each torrent that were of use: see `StoredContent.used`."""
        return {ref.torrent: content.used() for ref, content in self._contents.items()}

    def close(self) -> None:
        """Close the files and end the leases; a later search opens and takes them again."""
        while self._open:
            self._open.popitem()[1].close()
        while self._leases:
            self._leases.popitem()[1].close()

    def _load(self) -> None:
        manifests = list(home_manifests(self._home))
        for manifest in manifests:
            for ref in manifest.all_layers:
                self._refs.setdefault(ref.layer_id, ref)
        pending: list[int] = []
        for manifest in manifests:
            for ref in manifest.all_layers:
                if ref.layer_id in self._layers:
                    continue
                for keys in self._load_layer(manifest, ref):
                    pending += keys
                    if len(pending) >= _SORTED_AT_ONCE:
                        self._keep(pending)
                        pending = []
        self._keep(pending)

    def _load_layer(self, manifest: Manifest, ref: LayerRef) -> Iterator[Iterable[int]]:
        """The keys of each page of a layer that is here."""
        try:
            content = self._content(ref)
            header = load_header(content, ref.layer_id, ref.header_length)
            seal = self._seal(manifest, header)
        except (Missing, P2pcloopError):
            return
        sealed_for_others = header.salt is not None and seal is None
        if sealed_for_others or self._looked + len(header.page_hashes) > MAX_PAGES:
            return
        self._looked += len(header.page_hashes)
        layer = self._layers[ref.layer_id] = _KnownLayer(ref, header, seal)
        for number in range(len(header.page_hashes)):
            try:
                data = read_page_bytes(content, header, number)
                if seal is not None:
                    data = seal.open_page(number, data)
            except (Missing, P2pcloopError):
                continue
            yield _keys(data, len(self._pages))
            self._pages.append((layer, number))

    def _seal(self, manifest: Manifest, header: IndexHeader) -> Seal | None:
        secret = self._secrets.get(manifest.key_check or b"")
        return None if header.salt is None or secret is None else Seal(secret, header.salt)

    def _keep(self, keys: list[int]) -> None:
        keys.sort()
        self._keys += [
            array("Q", keys[at : at + _SORTED_AT_ONCE])
            for at in range(0, len(keys), _SORTED_AT_ONCE)
        ]

    def _places(self, chunk_id: bytes) -> Iterator[int]:
        low = int.from_bytes(chunk_id[:8], sys.byteorder) & ~_PLACE
        for keys in self._keys:
            at = bisect_left(keys, low)
            while at < len(keys) and keys[at] & ~_PLACE == low:
                yield keys[at] & _PLACE
                at += 1

    def _resolve(self, place: int) -> KnownChunk | None:
        number, entry = divmod(place, ENTRIES_PER_PAGE)
        layer, page = self._pages[number]
        chunks = self._parse(number, layer, page)
        if chunks is None:
            return None
        chunk = chunks[entry]
        if not chunk.source:
            return KnownChunk(layer.ref, chunk, layer.seal)
        source = layer.header.sources[chunk.source - 1]
        if layer.seal is None:
            return KnownChunk(self._refs[source], replace(chunk, source=0), None)
        known = self._layers.get(source)
        if known is None:
            return None
        return KnownChunk(known.ref, replace(chunk, source=0), known.seal)

    def _parse(self, number: int, layer: _KnownLayer, page: int) -> ChunkPage | None:
        """The entries of a page, read again; None if it is not here any more, or wrong."""
        chunks = self._parsed.get(number)
        if chunks is None:
            try:
                lengths = self._source_lengths(layer.header.sources)
                content = self._content(layer.ref)
                chunks = load_page(
                    content, layer.header, page, seal=layer.seal, source_lengths=lengths
                )
            except (Missing, P2pcloopError):
                return None
            self._parsed[number] = chunks
            if len(self._parsed) > _PARSED_PAGES:
                self._parsed.popitem(last=False)
        return chunks

    def _source_lengths(self, sources: Sequence[bytes]) -> list[int]:
        refs = (self._refs.get(source) for source in sources)
        return [0 if ref is None else ref.pack_length for ref in refs]

    def _content(self, ref: LayerRef) -> StoredContent:
        """The bytes of a layer; the files of layers used last stay open."""
        content = self._contents.get(ref)
        if content is None:
            content = StoredContent(self._home.torrents / ref.torrent.hex(), ref)
            self._contents[ref] = content
        self._open[ref] = content
        self._open.move_to_end(ref)
        if len(self._open) > _OPEN_CONTENTS:
            self._open.popitem(last=False)[1].close()
        return content


def home_manifests(home: Home) -> Iterator[Manifest]:
    """The manifests of a home that can be read, newest first, `MAX_MANIFESTS` at most."""
    # Not the marks of versions that were removed (store/removed.py).
    paths = home.manifests.glob("[0-9a-f]" * (2 * ID_SIZE))
    for path in sorted(paths, key=_modified, reverse=True)[:MAX_MANIFESTS]:
        try:
            yield open_manifest(path.read_bytes()).manifest
        except (OSError, P2pcloopError) as err:
            _log.warning("%s is passed over: %s", path, err)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0


def _keys(page: bytes, number: int) -> Iterable[int]:
    """A key for each entry: the first 40 bits of its id, in this machine's order, and its place."""
    words = array("Q", page)
    first = number * ENTRIES_PER_PAGE
    ids = words[ENTRY.size // 8 - 4 :: ENTRY.size // 8]
    return [word & ~_PLACE | first + entry for entry, word in enumerate(ids)]
