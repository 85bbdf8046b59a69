"""The decoded chunks of a stack of layers: each verified when it is decoded, and kept for a while.

The chunks decoded last are kept in memory. A chunk that had to be decoded a second time goes into a
temporary file, too: memory is too small for the chunks that are in use. A copy from end to end,
which needs no chunk twice, writes nothing there. Chunks of chains go there when memory drops them:
to decode one again takes all those before it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from p2pcloop.errors import P2pcloopError
from p2pcloop.image.api import Missing
from p2pcloop.image.bits import Bits
from p2pcloop.image.chain import ChainAhead
from p2pcloop.image.decode_ahead import DecodeAhead
from p2pcloop.image.layer import Layer
from p2pcloop.image.spill import SpillFile

BATCH_SIZE: Final = 2 << 20
"""Decoded bytes of chunks that are started together; others are decoded when they are read."""

AHEAD_SIZE: Final = 512 << 10
"""Bytes that are decoded ahead of a sequential reader at most; at least one chunk. It begins with
one chunk and doubles with each that is read: most runs of a boot are short."""

LEAST_SIZE: Final = 32 << 10
"""To decode a chunk of fewer bytes takes less time than to hand it to a thread."""

_ENTRY_SIZE = 512
"""Bytes counted for each chunk in memory besides its content."""

_READERS = 8
"""How many sequential readers are told apart."""


def chunk_key(layer: int, number: int) -> int:
    """A number for a chunk of a layer of the stack; the next chunk's number is one more."""
    return layer << 32 | number


class DecodedChunks:
    """Returns the content of chunks by key. All calls come from one thread.

    Attributes:
        bytes_touched: stored bytes of all chunks that were touched so far: returned, or of a chain
            and decoded on the way to another.
        on_touch: called with the key of each chunk when it is first touched.
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
        self._chain = ChainAhead()
        self._readers: deque[_Reader] = deque(maxlen=_READERS)

    def touched(self, key: int) -> bool:
        """Whether a chunk was touched so far."""
        return key & 0xFFFFFFFF in self._touched[key >> 32]

    def count_touched(self) -> int:
        """How many chunks were touched so far."""
        return sum(bits.count for bits in self._touched)

    def part(self, key: int, start: int, length: int) -> memoryview | None:
        """Return bytes of a decoded chunk; None if it is not decoded, or shorter."""
        data = self._cache.get(key)
        if data is None:
            return None if self._spill is None else self._spill.read(key, start, length)
        self._cache.move_to_end(key)
        part = data[start : start + length]
        return part if len(part) == length else None

    def read(self, key: int) -> memoryview:
        """Return the content of a chunk, decoded if necessary. Errors as of `Layer.read_chunk`."""
        data = self._cache.get(key)
        if data is not None:
            self._cache.move_to_end(key)
            return data
        kept = self._layers[key >> 32].read_kept(key & 0xFFFFFFFF)
        data = self._decode(key) if kept is None else memoryview(kept)
        once = self._touch(key) or kept is not None
        if once or self._spill is None or not self._spill.put(key, data):
            self._keep(key, data)
        if kept is None:
            self._follow(key)
        return data

    def contents(self) -> list[tuple[bytes, memoryview]]:
        """Return id and content of each chunk in memory, for store/kept.py."""
        found: list[tuple[bytes, memoryview]] = []
        for key, data in self._cache.items():
            with suppress(Missing, P2pcloopError):  # its page of the table was dropped again
                found.append((self._layers[key >> 32].chunk(key & 0xFFFFFFFF).id, data))
        return found

    def release_kept(self) -> int:
        """Drop the chunks from memory that `Layer.read_kept` has; return their bytes."""
        released = 0
        for key in list(self._cache):
            with suppress(Missing, P2pcloopError):  # its page of the table was dropped again
                if self._layers[key >> 32].is_kept(key & 0xFFFFFFFF):
                    released += len(self._cache.pop(key)) + _ENTRY_SIZE
        self._cached -= released
        return released

    def is_decoded(self, key: int) -> bool:
        """Whether a chunk is kept here, or a thread has its stored bytes."""
        if key in self._cache or key in self._chain:
            return True
        return self._spill is not None and key in self._spill

    def read_ahead(self, keys: Iterable[int]) -> None:
        """Have several chunks decoded side by side before they are read; ignores a single one."""
        wanted = [key for key in dict.fromkeys(keys) if not self.is_decoded(key)]
        if len(wanted) > 1:
            self._start(wanted, BATCH_SIZE)

    def arrived(self, key: int) -> None:
        """Decode a chunk ahead whose stored bytes have just come, if it is the next of a chain."""
        with suppress(Missing, P2pcloopError):  # its page of the table was dropped again
            kept = self._layers[key >> 32].is_kept(key & 0xFFFFFFFF)
            if self._ahead.workers and not kept and self._is_chained(key):
                self._start_chain(key)

    def close(self) -> None:
        """End the threads and free the room of the temporary file."""
        self._ahead.close()
        self._chain.close()
        if self._spill is not None:
            self._spill.close()

    def _decode(self, key: int) -> memoryview:
        """Decode a chunk; keep the others that had to be decoded for it."""
        data = self._ahead.take(key) if key in self._ahead else None
        if data is None and self._is_chained(key):
            data = self._take_chain(key)
        if data is not None:
            return memoryview(data)
        # A chunk that was wrong when it was decoded ahead may have been healed since: read it.
        again = False
        for number, data in self._layers[key >> 32].read_chunks(key & 0xFFFFFFFF):
            other = chunk_key(key >> 32, number)
            again |= other != key and self.is_decoded(other)
            self._keep_other(other, data, key)
        assert data is not None, "a chunk is decoded last of those that it needs"
        if again and self._spill is not None:
            self._decode_rest(key)
        return memoryview(data)

    def _decode_rest(self, key: int) -> None:
        """Decode what follows of a chain that was decoded from its start once more: it is not a
        third time, although a reader jumps in it forth and back. What is missing ends it."""
        layer, number = self._layers[key >> 32], (key & 0xFFFFFFFF) + 1
        with suppress(Missing, P2pcloopError):
            while number < layer.header.chunk_count and layer.chunk(number).follows:
                self._keep_other(chunk_key(key >> 32, number), layer.read_chunk(number), key)
                number += 1

    def _is_chained(self, key: int) -> bool:
        return self._layers[key >> 32].chunk(key & 0xFFFFFFFF).chained

    def _take_chain(self, key: int) -> bytes | None:
        """Take a chunk that is decoded ahead.

        Returns:
            Its content; None if it was wrong, or is not decoded ahead. Then no other chunk is, and
            the decoders of chains are free.
        """
        data = self._chain.take(key) if key in self._chain else None
        while data is None and (other := self._chain.first()) is not None:
            content = self._chain.take(other)
            if content is not None:
                self._keep_other(other, content, key)
        return data

    def _keep_other(self, other: int, data: bytes, key: int) -> None:
        """Keep a chunk of a chain that was decoded on the way to another one."""
        if other != key and not self.is_decoded(other):
            self._touch(other)
            self._keep(other, memoryview(data))

    def _touch(self, key: int) -> bool:
        """Count a chunk as touched; return False if it was already."""
        if not self._touched[key >> 32].add(key & 0xFFFFFFFF):
            return False
        self.bytes_touched += self._layers[key >> 32].chunk(key & 0xFFFFFFFF).length
        self.on_touch(key)
        return True

    def _keep(self, key: int, data: memoryview) -> None:
        self._cache[key] = data
        self._cached += len(data) + _ENTRY_SIZE
        self._drop()

    def limit(self, cache_size: int) -> None:
        """Keep up to so many bytes in memory from now on, or the last chunk."""
        self._cache_size = cache_size
        self._drop()

    def _drop(self) -> None:
        while self._cached > self._cache_size and len(self._cache) > 1:
            dropped, data = self._cache.popitem(last=False)
            self._cached -= len(data) + _ENTRY_SIZE
            if self._spill is not None and dropped not in self._spill:
                with suppress(Missing, P2pcloopError):  # its page of the table was dropped, too
                    if self._is_chained(dropped):
                        self._spill.put(dropped, data)

    def _follow(self, key: int) -> None:
        """Decode ahead of a sequential reader."""
        reader = next((each for each in self._readers if each.last == key - 1), None)
        if reader is None:
            self._readers.append(_Reader(key))
            return
        layer = self._layers[key >> 32]
        number = (key & 0xFFFFFFFF) + 1
        size = layer.chunk(number - 1).size
        most = max(1, AHEAD_SIZE // size) if size >= LEAST_SIZE else 0
        reader.last, reader.ahead = key, min(max(1, 2 * reader.ahead), most)
        end = min(number + reader.ahead, layer.header.chunk_count)
        ahead = (chunk_key(key >> 32, each) for each in range(number, end))
        self._start([each for each in ahead if not self.is_decoded(each)], AHEAD_SIZE)

    def _start(self, keys: Sequence[int], limit: int) -> None:
        """Have chunks decoded that are here: at least one, and no more than `limit` bytes.

        Missing chunks and errors are left to the read of the chunk. Chunks of chains are decoded
        by a thread of their own, one after the other.
        """
        if not self._ahead.workers:
            return
        for key in keys:
            if key in self._ahead:
                continue
            layer, number = self._layers[key >> 32], key & 0xFFFFFFFF
            try:
                if layer.chunk(number).size < LEAST_SIZE or layer.is_kept(number):
                    continue
                if layer.chunk(number).chained:
                    self._start_chain(key)
                    continue
                pack, chunk, stored = layer.stored_chunk(number)
            except (Missing, P2pcloopError):
                continue
            self._ahead.start(key, chunk.memory, partial(pack.decode, chunk, stored))
            limit -= chunk.size
            if limit <= 0:
                return

    def _start_chain(self, key: int) -> None:
        """Have the chunks of chains decoded that are here and not small, from one on.

        Raises:
            Missing, FormatError: the same as `Layer.chunk`.
        """
        layer = self._layers[key >> 32]
        for number in range(key & 0xFFFFFFFF, layer.header.chunk_count):
            following = chunk_key(key >> 32, number)
            if following in self._chain:
                continue
            if self._chain.size >= ChainAhead.MAX_SIZE or self.is_decoded(following):
                return
            chunk = layer.chunk(number)
            decode = layer.prepare_next(number) if chunk.size >= LEAST_SIZE else None
            if decode is None:
                return
            self._chain.start(following, chunk.memory, decode)


@dataclass(slots=True)
class _Reader:
    """A reader that may be sequential.

    Attributes:
        last: the chunk that it read last.
        ahead: chunks behind it that were decoded ahead then.
    """

    last: int
    ahead: int = 0


def _ignore(key: int) -> None:
    """The `on_touch` of a cache whose touches are not recorded."""
