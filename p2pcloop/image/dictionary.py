"""The dictionary of a hot layer: chunks at its start that no block is mapped to
(docs/formats/pack.md, "Dictionary chunks").

They hold pages of the kernel that a suspended guest runs. The chunks behind them are packed with
these as dictionary. A machine that has the kernel makes them from its file, and need not fetch
them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

from p2pcloop.formats.block_map import ZERO_CHUNK, LayerMap
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.store.unpacked_kernels import PageLike, note_use

MAX_CHUNKS: Final = 16
"""Chunks of a dictionary at most; of 64 chunks that a chain has."""

MAX_BLOCKS: Final = 1 << 18
"""Blocks of the layer that are looked at; as many as one that was packed here has at most."""


class Dictionary:
    """What a layer's dictionary would hold, as far as this machine has it.

    Attributes:
        chunks: how many chunks no block is mapped to; 0 if there is no dictionary, or too many.
    """

    def __init__(self, layer_map: LayerMap, kernels: Sequence[PageLike]) -> None:
        # A layer of more runs is of a publisher that wants readers to sort them.
        usable = bool(kernels) and len(layer_map) <= MAX_BLOCKS
        first = min(layer_map.chunks, default=0) if usable else 0
        self.chunks = first if first <= MAX_CHUNKS else 0
        self._kernels = kernels
        self._map = layer_map if self.chunks else None
        self._kernel: PageLike | None = None
        self._blocks: Sequence[int] = ()

    def is_here(self, entries: Sequence[Chunk]) -> bool:
        """Whether this machine has all of it.

        Args:
            entries: of its chunks.
        """
        if self._map is not None:
            layer_map, self._map = self._map, None
            for kernel in self._kernels:
                used = array("I")
                if _contents(entries, _pages(kernel, _in_order(layer_map), used)) is not None:
                    self._kernel, self._blocks = kernel, used
                    note_use(kernel)
                    break
        return self._kernel is not None

    def contents(self, entries: Sequence[Chunk]) -> list[bytes] | None:
        """The content of each chunk, verified; None if this machine has it no more."""
        if self._kernel is None:
            return None
        found = _contents(entries, _pages(self._kernel, self._blocks, array("I")))
        if found is None:
            self._kernel = None
        return found


def _contents(entries: Sequence[Chunk], pages: Iterator[bytes]) -> list[bytes] | None:
    found: list[bytes] = []
    for number, chunk in enumerate(entries):
        codec = Codec.UNFILTERED_NEXT if number else Codec.UNFILTERED_START
        content = b"".join(islice(pages, chunk.blocks))
        if chunk.codec is not codec or hashlib.sha256(content).digest() != chunk.id:
            return None
        found.append(content)
    return found


def _pages(kernel: PageLike, blocks: Iterable[int], used: array[int]) -> Iterator[bytes]:
    """The kernel's pages that blocks are like; the blocks are noted in `used`."""
    for block in blocks:
        if (page := kernel(block)) is not None:
            used.append(block)
            yield page


def _in_order(layer_map: LayerMap) -> Iterator[int]:
    """The layer's blocks, in the order in which they are packed; `MAX_BLOCKS` of them."""
    chunks, shapes = layer_map.chunks, layer_map.shapes
    stored = (at for at, chunk in enumerate(chunks) if chunk != ZERO_CHUNK)
    runs = sorted(stored, key=lambda at: (chunks[at], shapes[at] & 0xFFFF))
    blocks = (range(layer_map.starts[at], layer_map.ends[at]) for at in runs)
    return islice(chain.from_iterable(blocks), MAX_BLOCKS)
