"""The merged image: the maps of all layers joined once, and their decoded chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from p2pcloop.errors import FormatError, P2pcloopError
from p2pcloop.formats.block_map import ZERO_CHUNK, BlockMap, LayerMap, merge
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.manifest import compute_image_id
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.chunks import DecodedChunks, chunk_key
from p2pcloop.image.layer import Layer, Pack
from p2pcloop.image.scatter import ZEROS, Scatter
from p2pcloop.image.spill import SpillFile
from p2pcloop.units import BLOCK_SIZE

DEFAULT_CACHE_SIZE = 64 << 20

JUMP_SIZE = 256 << 10
"""A read that lacks so many bytes more of a hot layer than of the layers below takes the latter: it
jumps ahead of what is read in order, and would wait for all of the chain before it. What is read in
order lacks a chunk or two, and these are on their way."""


class MergedImage:
    """The image that a stack of layers shows.

    Attributes:
        layers: base first.
        size: bytes of the device.
        image_id: SHA-256 of the size and the layers' ids.
        rests: no chunk of a hot layer is on its way: a read that lacks one takes what costs less.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        cache_size: int = DEFAULT_CACHE_SIZE,
        spill: Path | None = None,
        also_close: Callable[[], None] | None = None,
    ) -> None:
        """Join `layers`, base first; the image has the size of the top layer.

        Args:
            layers: at least one, none of them twice; they lose their maps.
            cache_size: bytes of decoded chunks that are kept, least recently used dropped first.
            spill: folder for a temporary file of chunks that memory has no room for, or None.
            also_close: called when the image is closed.
        """
        self.rests = False
        self.layers = layers
        self._also_close = also_close
        self.size = layers[-1].header.image_size
        self.image_id = compute_image_id(self.size, [layer.header.layer_id for layer in layers])
        maps = [layer.take_map() for layer in layers]
        self.map = merge(maps)
        self._lower = _LowerMap([layer.header.hot for layer in layers], maps)
        self._chunks = DecodedChunks(
            layers, cache_size=cache_size, spill=None if spill is None else SpillFile(spill)
        )

    def limit_cache(self, cache_size: int) -> None:
        """Keep up to so many bytes of decoded chunks from now on."""
        self._chunks.limit(cache_size)

    @property
    def chunks_touched(self) -> int:
        """Distinct chunks read so far."""
        return self._chunks.count_touched()

    @property
    def bytes_touched(self) -> int:
        """Stored bytes of the distinct chunks read so far."""
        return self._chunks.bytes_touched

    def notify_touches(self, on_touch: Callable[[int, int], None]) -> None:
        """Have `on_touch` called with layer and number of each chunk when it is first read."""
        self._chunks.on_touch = lambda key: on_touch(key >> 32, key & 0xFFFFFFFF)

    def touched(self, layer: int, number: int) -> bool:
        """Whether a chunk of a layer was read so far."""
        return number >= 0 and self._chunks.touched(chunk_key(layer, number))

    def read_into(self, offset: int, length: int, scatter: Scatter) -> list[ByteRange]:
        """Fill the next `length` bytes of `scatter` with the image's bytes from `offset` on.

        Returns:
            The missing ranges, without repeats; if there are any, not all bytes were filled.

        Raises:
            CorruptError: a chunk does not match its hash, from any source.
            FormatError: the index is what was signed and yet cannot be right.
        """
        missing: dict[ByteRange, None] = {}
        end = offset + length
        first = offset // BLOCK_SIZE
        count = -(-end // BLOCK_SIZE) - first
        pieces = self.map.pieces(first, count)
        if len(pieces) > 1:
            self._chunks.read_ahead(
                chunk_key(layer, chunk) for layer, chunk, _, _ in pieces if chunk != ZERO_CHUNK
            )
        for layer, chunk, within, blocks in pieces:
            skip = offset % BLOCK_SIZE
            size = min(blocks * BLOCK_SIZE - skip, end - offset)
            offset += size
            if chunk == ZERO_CHUNK:
                scatter.zero(size)
                continue
            try:
                parts = [self._read_part(layer, chunk, within * BLOCK_SIZE + skip, size)]
            except Missing as absent:
                parts, lacking = self._read_lower(layer, offset - size, size, absent)
                if lacking:
                    missing.update(dict.fromkeys(lacking))
                    scatter.take(size)
                    continue
            for part in parts:
                scatter.put(part)
        return list(missing)

    def _read_lower(
        self, layer: int, offset: int, size: int, absent: Missing
    ) -> tuple[list[memoryview], Sequence[ByteRange]]:
        """Read from the layers below what a hot layer repeats, and lacks.

        Returns:
            The bytes, or the ranges to fetch: of the hot layer, unless those below lack far less.
        """
        below = self._lower.map_below(layer)
        if below is None or any(each.heal for each in absent.ranges):
            return [], absent.ranges
        parts, lacking, first = [], dict[ByteRange, None](), offset // BLOCK_SIZE
        end = offset + size
        for lower, chunk, within, blocks in below.pieces(first, -(-end // BLOCK_SIZE) - first):
            skip = offset % BLOCK_SIZE
            length = min(blocks * BLOCK_SIZE - skip, end - offset)
            offset += length
            if chunk == ZERO_CHUNK:
                return [], absent.ranges  # a hot layer leaves zeros out: it repeats something else
            try:
                parts.append(self._read_part(lower, chunk, within * BLOCK_SIZE + skip, length))
            except Missing as missing:
                lacking.update(dict.fromkeys(missing.ranges))
        more = 0 if self.rests else JUMP_SIZE
        if _bytes_of(absent.ranges) - _bytes_of(lacking) <= more and lacking:
            return [], absent.ranges
        return parts, [replace(each, instead=absent.ranges) for each in lacking]

    def _read_part(self, layer: int, number: int, start: int, size: int) -> memoryview:
        key = chunk_key(layer, number)
        part = self._chunks.part(key, start, size)
        if part is None:
            part = self._chunks.read(key)[start : start + size]
            if len(part) != size:
                raise FormatError("the map of a layer names a block that its chunk lacks")
        return part

    def copy_decoded(self, offset: int, view: memoryview) -> bool:
        """Fill `view` with whole blocks that lie in one decoded chunk, or are zeros.

        That is the usual case of a small read, and costs half of `read_into`. In all other cases
        this fills nothing and returns False.
        """
        pieces = self.map.pieces(offset // BLOCK_SIZE, len(view) // BLOCK_SIZE)
        if len(pieces) != 1:
            return False
        layer, chunk, within, _ = pieces[0]
        if chunk == ZERO_CHUNK:
            part: memoryview | None = ZEROS[: len(view)]
        else:
            part = self._chunks.part(layer << 32 | chunk, within * BLOCK_SIZE, len(view))
        if part is None or len(part) != len(view):
            return False
        view[:] = part
        return True

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """See `BlockDevice.read_ahead`; the ranges (first block, blocks) are not in the overlay."""
        self._chunks.read_ahead(
            chunk_key(layer, chunk)
            for first, count in ranges
            for layer, chunk, _, _ in self.map.pieces(first, count)
            if chunk != ZERO_CHUNK
        )

    def arrived(self, layer: int, number: int) -> None:
        """Take note that the stored bytes of a chunk have come, before it is read."""
        self._chunks.arrived(chunk_key(layer, number))

    def missing(self, first: int, count: int) -> list[ByteRange]:
        """The ranges that a read of these blocks lacks, if known; see `BlockDevice.require`."""
        missing: dict[ByteRange, None] = {}
        before: dict[int, set[int]] = {}
        for layer, chunk, _, _ in self.map.pieces(first, count):
            if chunk == ZERO_CHUNK or self._chunks.is_decoded(chunk_key(layer, chunk)):
                continue
            try:
                lacking = self.layers[layer].lacking(chunk, before.setdefault(layer, set()))
                missing.update(dict.fromkeys(lacking.values()))
            except Missing as page:
                missing.update(dict.fromkeys(page.ranges))
        return list(missing)

    def whole_chunk(self, first: int, count: int, codec: Codec) -> tuple[Pack, Chunk, bytes] | None:
        """The chunk that holds just these blocks, and its bytes as they are stored in its pack.

        Returns:
            None if there is no such chunk of that codec, it is sealed, or its bytes cannot be read
            now: then a read of the blocks fetches them, or tells why not.
        """
        pieces = self.map.pieces(first, count)
        layer, number, within, _ = pieces[0]
        if len(pieces) > 1 or number == ZERO_CHUNK or within:
            return None
        try:
            entry = self.layers[layer].chunk(number)
            if (entry.blocks, entry.codec) != (count, codec):
                return None
            pack, chunk, stored = self.layers[layer].stored_chunk(number)
        except (Missing, P2pcloopError):
            return None
        return None if pack.seal is not None else (pack, chunk, stored)

    def contents(self) -> list[tuple[bytes, memoryview]]:
        """Return id and content of the decoded chunks that are in memory."""
        return self._chunks.contents()

    def release_kept(self) -> int:
        """Drop the chunks from memory that `Layer.read_kept` has; return their bytes."""
        return self._chunks.release_kept()

    def close(self) -> None:
        """Close the layers' files."""
        self._chunks.close()
        for layer in self.layers:
            layer.close()
        if self._also_close is not None:
            self._also_close()

    def read_chunk(self, layer: int, number: int) -> memoryview:
        """Return the decoded content of a chunk of a layer, verified; errors as of `Layer`'s."""
        return self._chunks.read(chunk_key(layer, number))


class _LowerMap:
    """The map of an image without its hot layers, made when it is needed first."""

    def __init__(self, hot: Sequence[bool], maps: Sequence[LayerMap]) -> None:
        """`hot` tells which of the maps' layers are hot, base first."""
        self._hot = hot
        nothing = LayerMap.from_runs([])
        self._maps = [nothing if is_hot else each for is_hot, each in zip(hot, maps, strict=True)]
        self._map: BlockMap | None = None
        if True not in hot:
            self._maps.clear()

    def map_below(self, layer: int) -> BlockMap | None:
        """The map, if a layer is hot and lies over others."""
        if not self._hot[layer] or all(self._hot[:layer]):
            return None
        if self._map is None:
            self._map = merge(self._maps)
            self._maps.clear()
        return self._map


def _bytes_of(ranges: Iterable[ByteRange]) -> int:
    return sum(each.length for each in ranges)
