"""The merged image: the layers' maps joined once, decoded chunks kept in a bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import ZERO_CHUNK, merge
from p2pcloop.formats.manifest import compute_image_id
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.layer import Layer
from p2pcloop.image.scatter import Scatter
from p2pcloop.units import BLOCK_SIZE

DEFAULT_CACHE_SIZE = 64 << 20


class MergedImage:
    """What a stack of layers reads as.

    Attributes:
        layers: base first.
        size: bytes of the device.
        image_id: SHA-256 that names the content.
        chunks_touched: how many distinct chunks were decoded so far.
        bytes_touched: their stored bytes.
        on_touch: called with layer and number of each chunk when it is decoded first.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        cache_size: int = DEFAULT_CACHE_SIZE,
        also_close: Callable[[], None] | None = None,
    ) -> None:
        """Join `layers`, base first; the image has the size of the top layer.

        Args:
            layers: at least one, none of them twice; their maps are taken.
            cache_size: bytes of decoded chunks that are kept, least recently used dropped first.
            also_close: called when the image is closed.
        """
        self.layers = layers
        self._also_close = also_close
        self.size = layers[-1].header.image_size
        self.image_id = compute_image_id(self.size, [layer.header.layer_id for layer in layers])
        self.map = merge([layer.take_map() for layer in layers])
        self._cache: OrderedDict[int, memoryview] = OrderedDict()
        self._cached = 0
        self._cache_size = cache_size
        self._touched: set[int] = set()
        self.bytes_touched = 0
        self.on_touch: Callable[[int, int], None] = lambda _layer, _number: None

    @property
    def chunks_touched(self) -> int:
        """Distinct chunks decoded so far."""
        return len(self._touched)

    def touched(self, layer: int, number: int) -> bool:
        """Whether a chunk of a layer was decoded so far."""
        return layer << 32 | number in self._touched

    def read_into(self, offset: int, length: int, scatter: Scatter) -> list[ByteRange]:
        """Fill the next `length` bytes of `scatter` with the image's bytes from `offset` on.

        Returns:
            What is missing, without repeats; where that is not empty, the bytes were not all
            filled.

        Raises:
            CorruptError: a chunk matches its hash nowhere.
            FormatError: the index is what was signed and yet cannot be right.
        """
        missing: dict[ByteRange, None] = {}
        end = offset + length
        first = offset // BLOCK_SIZE
        count = -(-end // BLOCK_SIZE) - first
        for layer, chunk, within, blocks in self.map.pieces(first, count):
            skip = offset % BLOCK_SIZE
            size = min(blocks * BLOCK_SIZE - skip, end - offset)
            offset += size
            if chunk == ZERO_CHUNK:
                scatter.zero(size)
                continue
            try:
                data = self.read_chunk(layer, chunk)
            except Missing as absent:
                missing.update(dict.fromkeys(absent.ranges))
                scatter.take(size)
            else:
                start = within * BLOCK_SIZE + skip
                if start + size > len(data):
                    raise FormatError("the map of a layer names a block that its chunk lacks")
                scatter.put(data[start : start + size])
        return list(missing)

    def copy_decoded(self, offset: int, view: memoryview) -> bool:
        """Fill `view` with whole blocks that lie in one decoded chunk, the usual case of a guest's
        small read; False, and nothing filled, in all others. Costs half of what `read_into` does.
        """
        pieces = self.map.pieces(offset // BLOCK_SIZE, len(view) // BLOCK_SIZE)
        if len(pieces) != 1:
            return False
        layer, chunk, within, _ = pieces[0]
        key = layer << 32 | chunk
        data = self._cache.get(key)
        if data is None:
            return False
        part = data[within * BLOCK_SIZE : within * BLOCK_SIZE + len(view)]
        if len(part) != len(view):
            return False
        self._cache.move_to_end(key)
        view[:] = part
        return True

    def close(self) -> None:
        """Close the layers' files."""
        for layer in self.layers:
            layer.close()
        if self._also_close is not None:
            self._also_close()

    def read_chunk(self, layer: int, number: int) -> memoryview:
        """Return the decoded content of a chunk of a layer, verified; errors as of `Layer`'s."""
        key = layer << 32 | number
        data = self._cache.get(key)
        if data is not None:
            self._cache.move_to_end(key)
            return data
        data = memoryview(self.layers[layer].read_chunk(number))
        if key not in self._touched:
            self._touched.add(key)
            self.bytes_touched += self.layers[layer].chunk(number).length
            self.on_touch(layer, number)
        self._cache[key] = data
        self._cached += len(data)
        while self._cached > self._cache_size and len(self._cache) > 1:
            self._cached -= len(self._cache.popitem(last=False)[1])
        return data
