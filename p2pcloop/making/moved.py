"""Finding blocks of a delta that its base has already, at any place of the device.

A package manager replaces most files of an upgrade by equal ones, whose blocks are written to other
places. These blocks need not be packed again: a map can point to the base's chunks.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.block_map import ZERO_CHUNK, BlockMap, LayerMap, merge
from p2pcloop.formats.chunk_table import Chunk
from p2pcloop.formats.index import VERSION
from p2pcloop.image.api import Missing
from p2pcloop.image.layer import Pack
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.changes import Changes, checksum
from p2pcloop.parallel import ordered_map
from p2pcloop.units import BLOCK_SIZE

_WITHIN_BITS = 8
_PLACE_BITS = 32
_CANDIDATES = 4
"""How many places of one checksum are compared."""

_BATCH = 16
"""Chunks of one item of work: so many that to hand it to a thread costs little."""


class Place(NamedTuple):
    """The place of a block: within a chunk of `blocks` blocks, of a layer of an image."""

    layer: int
    chunk: int
    within: int
    blocks: int

    def following(self, image: MergedImage) -> Place | None:
        """The block after it in the pack, if there is one."""
        if self.within + 1 < self.blocks:
            return self._replace(within=self.within + 1)
        layer = image.layers[self.layer]
        if self.chunk + 1 == layer.header.chunk_count:
            return None
        try:
            blocks = layer.chunk(self.chunk + 1).blocks
        except (Missing, P2pcloopError):
            return None
        return Place(self.layer, self.chunk + 1, 0, blocks)


class MovedBlocks:
    """The blocks of a base that may be in a delta, by their checksums: 8 bytes for each."""

    def __init__(self, image: MergedImage, changes: Changes) -> None:
        """Search all chunks of the base that are here; fetch nothing."""
        self._image = image
        self._keys = array("Q")
        self._chunks: list[tuple[int, int, int]] = []
        found: list[int] = []
        for item, matches in chain.from_iterable(ordered_map(_look, self._stored(changes))):
            if matches and len(self._chunks) < 1 << (_PLACE_BITS - _WITHIN_BITS):
                ordinal = len(self._chunks) << _WITHIN_BITS
                self._chunks.append((item.layer, item.number, item.chunk.blocks))
                found += [crc << _PLACE_BITS | ordinal | within for crc, within in matches]
        found.sort()
        self._keys.extend(found)

    def find(
        self, _block: int, content: memoryview, crc: int, expected: Place | None
    ) -> Place | None:
        """Return the place of a block. `expected` is preferred, so that runs stay long."""
        if expected is not None and _holds(self._image, expected, content):
            return expected
        low = crc << _PLACE_BITS
        at = bisect_left(self._keys, low)
        for key in self._keys[at : at + _CANDIDATES]:
            if key >> _PLACE_BITS != crc:
                break
            ordinal, within = divmod(key & (1 << _PLACE_BITS) - 1, 1 << _WITHIN_BITS)
            layer, chunk, blocks = self._chunks[ordinal]
            place = Place(layer, chunk, within, blocks)
            if _holds(self._image, place, content):
                return place
        return None

    def _stored(self, changes: Changes) -> Iterator[list[_Stored]]:
        """Every chunk of the base that is here, as it is stored, some at a time."""
        batch: list[_Stored] = []
        for layer, numbers in enumerate(
            _visible_chunks(self._image, _map_without_chains(self._image))
        ):
            for number in numbers:
                try:
                    pack, chunk, stored = self._image.layers[layer].stored_chunk(number)
                except (Missing, P2pcloopError):
                    continue  # to pack a block again is always right
                batch.append(_Stored(layer, number, pack, chunk, stored, changes))
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
        yield batch


class _Stored(NamedTuple):
    layer: int
    number: int
    pack: Pack
    chunk: Chunk
    stored: bytes
    changes: Changes


def _look(batch: list[_Stored]) -> list[tuple[_Stored, list[tuple[int, int]]]]:
    """Checksum and place within the chunk of each block that may be in the changes."""
    return [(item, _matches(item)) for item in batch]


def _matches(item: _Stored) -> list[tuple[int, int]]:
    # Not verified, to save a third of the time: a match is read again and compared.
    data = item.pack.decode_unverified(item.chunk, item.stored)
    if data is None:
        return []
    view = memoryview(data)
    crcs = [checksum(view[at : at + BLOCK_SIZE]) for at in range(0, len(view), BLOCK_SIZE)]
    return [(crc, within) for within, crc in enumerate(crcs) if item.changes.mark(crc)]


def _holds(image: MergedImage, place: Place, content: memoryview) -> bool:
    try:
        data = image.read_chunk(place.layer, place.chunk)
    except (Missing, P2pcloopError):
        return False  # it is gone since the search: the block is packed
    start = place.within * BLOCK_SIZE
    return data[start : start + BLOCK_SIZE] == content


def _map_without_chains(image: MergedImage) -> BlockMap:
    """The map of an image without layers that have chains: no other layer can refer to those, and a
    hot layer's blocks lie in the layers below it, too. Where maps are not here, that of all."""
    chained = [layer.header.version == VERSION for layer in image.layers]
    if not any(chained):
        return image.map
    try:
        return merge(
            [
                LayerMap.from_runs([]) if left_out else layer.load_map()
                for layer, left_out in zip(image.layers, chained, strict=True)
            ]
        )
    except (Missing, P2pcloopError):
        return image.map  # to pack a block again is always right


def _visible_chunks(image: MergedImage, shown: BlockMap) -> list[list[int]]:
    """The numbers of the chunks that some block of a map shows, for each layer, in order."""
    found: list[set[int]] = [set() for _ in image.layers]
    for run in shown:
        if run.chunk != ZERO_CHUNK:
            last = run.chunk + (run.within + run.count - 1) // run.per_chunk
            found[run.layer].update(range(run.chunk, last + 1))
    return [sorted(numbers) for numbers in found]


class LivePlaces:
    """Finds blocks in chunks of the upper layers of an image, if most of the chunk still shows."""

    def __init__(self, image: MergedImage, layers: int) -> None:
        """Count the blocks that each chunk above the lowest `layers` layers shows."""
        self._image = image
        self._layers = layers
        self._shown: Counter[tuple[int, int]] = Counter()
        self._map = _map_without_chains(image)
        for run in self._map:
            if run.layer >= layers and run.chunk != ZERO_CHUNK:
                for layer, chunk, _, blocks in self._map.pieces(run.start, run.count):
                    self._shown[layer, chunk] += blocks

    def find(
        self, block: int, content: memoryview, _crc: int, _expected: Place | None
    ) -> Place | None:
        """Return the place of a block; None if less than half of its chunk shows."""
        layer, number, within, _ = self._map.pieces(block, 1)[0]
        if layer < self._layers or number == ZERO_CHUNK:
            return None
        blocks = self._image.layers[layer].chunk(number).blocks
        if 2 * self._shown[layer, number] < blocks:
            return None
        place = Place(layer, number, within, blocks)
        if self._map is not self._image.map and not _holds(self._image, place, content):
            return None  # a layer of chains has other content there
        return place
