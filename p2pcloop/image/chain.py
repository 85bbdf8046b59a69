"""Chains that are being decoded: decoders, each at one chunk, and chunks that are decoded ahead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from p2pcloop.formats.lzma_chain import ChainDecoder

Place = tuple[bytes, int]
"""The id of a layer, and the number of a chunk."""

Decode = Callable[[], bytes | None]
"""Returns the content of a chunk, or None if the stored bytes are wrong; runs on any thread."""


class OpenChains:
    """Decoders of chains, of all layers of an image together, by the chunk that is next.

    A decoder takes as much memory as its chain has content, 16 MiB at most. A chain whose decoder
    was dropped is decoded again from its start.
    """

    LIMIT: Final = 2

    def __init__(self) -> None:
        self._decoders: OrderedDict[Place, ChainDecoder] = OrderedDict()

    def __contains__(self, place: Place) -> bool:
        return place in self._decoders and not self._decoders[place].broken

    def step(self, place: Place, *, starts: bool, ends: bool) -> ChainDecoder:
        """Return the decoder for a chunk, which is then at the next one.

        If there are too many, the one that was unused for longest is dropped.

        Args:
            starts: the chunk starts a chain; else a decoder is at it.
            ends: no chunk follows.
        """
        decoder = self._decoders.pop(place, None)
        if decoder is None or starts:
            decoder = ChainDecoder()
        if not ends:
            self._decoders.pop(following := (place[0], place[1] + 1), None)
            self._decoders[following] = decoder
            if len(self._decoders) > self.LIMIT:
                self._decoders.popitem(last=False)
        return decoder


class ChainAhead:
    """Chunks of chains that a thread decodes before they are read, one after the other, by key.

    All calls come from one thread.

    Attributes:
        size: stored and decoded bytes of all chunks that were not taken yet.
    """

    MAX_SIZE: Final = 5 << 20

    def __init__(self) -> None:
        """Start no thread yet: a process that forks must not have any."""
        self.size = 0
        self._pool: ThreadPoolExecutor | None = None
        self._futures: OrderedDict[int, tuple[Future[bytes | None], int]] = OrderedDict()

    def __contains__(self, key: int) -> bool:
        return key in self._futures

    def start(self, key: int, size: int, decode: Decode) -> None:
        """Have a chunk decoded after those that were started before.

        Args:
            size: its stored and decoded bytes.
        """
        self._pool = self._pool or ThreadPoolExecutor(1, "chain")
        self._futures[key] = self._pool.submit(decode), size
        self.size += size

    def take(self, key: int) -> bytes | None:
        """Wait for a chunk, return its content, and forget it."""
        future, size = self._futures.pop(key)
        self.size -= size
        return future.result()

    def first(self) -> int | None:
        """The key of the chunk that was started first, if there is one."""
        return next(iter(self._futures), None)

    def close(self) -> None:
        """End the thread."""
        self._futures.clear()
        self.size = 0
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
