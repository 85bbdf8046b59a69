"""The decoded chunks of a stack of layers: each verified when it is decoded, and kept for a while.

What was decoded last is kept in memory. What had to be decoded a second time goes into a temporary
file instead: memory is too small for what is being read, and a copy from end to end, which needs
nothing twice, writes nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from p2pcloop.errors import P2pcloopError
from p2pcloop.image.api import Missing
from p2pcloop.image.bits import Bits
from p2pcloop.image.decode_ahead import DecodeAhead
from p2pcloop.image.layer import Layer
from p2pcloop.image.spill import SpillFile

BATCH_SIZE: Final = 2 << 20
"""Decoded bytes of chunks that are started together; the rest is decoded in its turn."""

AHEAD_SIZE: Final = 512 << 10
"""How far ahead of one who reads chunk after chunk they are decoded; one chunk at least."""

LEAST_SIZE: Final = 32 << 10
"""A smaller chunk is decoded sooner than it is handed over."""

_ENTRY_SIZE = 512
"""Counted for each chunk in memory besides its bytes."""

_READERS = 8
"""So many that read chunk after chunk are told apart."""


def chunk_key(layer: int, number: int) -> int:
    """One number for a chunk of a layer of the stack; that of the next chunk is one more."""
    return layer << 32 | number


class DecodedChunks:
    """Gives out the content of chunks by key. All calls come from one thread.

    Attributes:
        bytes_touched: stored bytes of all chunks that were given out so far.
        on_touch: called with the key of each when it is given out first.
    """

    def __init__(
        self, layers: Sequence[Layer], *, cache_size: int, spill: SpillFile | None = None
    ) -> None:
        """Keep up to `cache_size` bytes in memory, or the last chunk, and more in `spill`."""
        self.bytes_touched = 0
        self._touched = [Bits(layer.header.chunk_count) for layer in layers]
        self.on_touch: Callable[[int], None] = _ignore
        self._layers = layers
        self._cache: OrderedDict[int, memoryview] = OrderedDict()
        self._cached = 0
        self._cache_size = cache_size
        self._spill = spill
        self._ahead = DecodeAhead()
        self._last: deque[int] = deque(maxlen=_READERS)

    def touched(self, key: int) -> bool:
        """Whether a chunk was given out so far."""
        return key & 0xFFFFFFFF in self._touched[key >> 32]

    def count_touched(self) -> int:
        """How many chunks were given out so far."""
        return sum(bits.count for bits in self._touched)

    def part(self, key: int, start: int, length: int) -> memoryview | None:
        """Return bytes of a chunk that is decoded; None where it is not, or is shorter."""
        data = self._cache.get(key)
        if data is None:
            return None if self._spill is None else self._spill.read(key, start, length)
        self._cache.move_to_end(key)
        part = data[start : start + length]
        return part if len(part) == length else None

    def read(self, key: int) -> memoryview:
        """Return the content of a chunk, decoded if need be; errors as of `Layer.read_chunk`."""
        data = self._cache.get(key)
        if data is not None:
            self._cache.move_to_end(key)
            return data
        data = memoryview(self._decode(key))
        if self._touched[key >> 32].add(key & 0xFFFFFFFF):
            self.bytes_touched += self._layers[key >> 32].chunk(key & 0xFFFFFFFF).length
            self.on_touch(key)
            self._keep(key, data)
        elif self._spill is None or not self._spill.put(key, data):
            self._keep(key, data)
        self._follow(key)
        return data

    def is_decoded(self, key: int) -> bool:
        """Whether a chunk is kept here."""
        return key in self._cache or (self._spill is not None and key in self._spill)

    def read_ahead(self, keys: Iterable[int]) -> None:
        """Have several chunks decoded side by side that are read next; not for one alone."""
        wanted = [key for key in dict.fromkeys(keys) if not self.is_decoded(key)]
        if len(wanted) > 1:
            self._start(wanted, BATCH_SIZE)

    def close(self) -> None:
        """End the threads and give back the room of what was spilled."""
        self._ahead.close()
        if self._spill is not None:
            self._spill.close()

    def _decode(self, key: int) -> bytes:
        layer, number = self._layers[key >> 32], key & 0xFFFFFFFF
        data = self._ahead.take(key) if key in self._ahead else None
        # What was wrong when it was read ahead may have been healed since: it is read again.
        return layer.read_chunk(number) if data is None else data

    def _keep(self, key: int, data: memoryview) -> None:
        self._cache[key] = data
        self._cached += len(data) + _ENTRY_SIZE
        while self._cached > self._cache_size and len(self._cache) > 1:
            self._cached -= len(self._cache.popitem(last=False)[1]) + _ENTRY_SIZE

    def _follow(self, key: int) -> None:
        """Decode ahead of one who reads chunk after chunk."""
        if key - 1 not in self._last:
            self._last.append(key)
            return
        self._last[self._last.index(key - 1)] = key
        layer = self._layers[key >> 32]
        number = (key & 0xFFFFFFFF) + 1
        size = layer.chunk(number - 1).size
        if size < LEAST_SIZE:
            return
        end = min(number + max(1, AHEAD_SIZE // size), layer.header.chunk_count)
        ahead = (chunk_key(key >> 32, each) for each in range(number, end))
        self._start([each for each in ahead if not self.is_decoded(each)], AHEAD_SIZE)

    def _start(self, keys: Sequence[int], limit: int) -> None:
        """Have chunks decoded that are here, one at least and no more than `limit` bytes.

        What is missing, or cannot be read, is told to who reads it.
        """
        if not self._ahead.workers:
            return
        for key in keys:
            if key in self._ahead:
                continue
            layer, number = self._layers[key >> 32], key & 0xFFFFFFFF
            try:
                if layer.chunk(number).size < LEAST_SIZE:
                    continue
                pack, chunk, stored = layer.stored_chunk(number)
            except (Missing, P2pcloopError):
                continue
            self._ahead.start(key, chunk.size, partial(pack.decode, chunk, stored))
            limit -= chunk.size
            if limit <= 0:
                return


def _ignore(key: int) -> None:
    """Ignore what is touched."""
