"""The dictionary of a hot layer: chunks at its start that no block is mapped to
(docs/formats/pack.md, "Dictionary chunks").

They hold pages of the kernel that a suspended guest runs. The chunks behind them are packed with
these as dictionary. A machine that has the kernel makes them from its file, and need not fetch
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from p2pcloop.formats.block_map import ZERO_CHUNK, LayerMap
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.store.unpacked_kernels import PageLike

MAX_CHUNKS: Final = 16
"""Chunks of a dictionary at most; of 64 chunks that a chain has."""


class Dictionary:
    """What a layer's dictionary would hold, as far as this machine has it.

    Attributes:
        chunks: how many chunks no block is mapped to; 0 if there is no dictionary, or too many.
    """

    def __init__(self, layer_map: LayerMap, kernels: Sequence[PageLike]) -> None:
        runs = [run for run in layer_map if run.chunk != ZERO_CHUNK]
        first = min((run.chunk for run in runs), default=0)
        self.chunks = first if kernels and first <= MAX_CHUNKS else 0
        self._kernels = kernels if self.chunks else ()
        self._runs = sorted(runs, key=lambda run: (run.chunk, run.within)) if self.chunks else []
        self._kernel: PageLike | None = None
        self._is_looked_for = False

    def is_here(self, entries: Sequence[Chunk]) -> bool:
        """Whether this machine has all of it.

        Args:
            entries: of its chunks.
        """
        if not self._is_looked_for:
            self._is_looked_for = True
            self._kernel = next(
                (each for each in self._kernels if self._contents(entries, each) is not None), None
            )
        return self._kernel is not None

    def contents(self, entries: Sequence[Chunk]) -> list[bytes] | None:
        """The content of each chunk, verified; None if this machine has it no more."""
        if self._kernel is None:
            return None
        found = self._contents(entries, self._kernel)
        if found is None:
            self._kernel = None
        return found

    def _contents(self, entries: Sequence[Chunk], kernel: PageLike) -> list[bytes] | None:
        pages = self._pages(kernel)
        found: list[bytes] = []
        for number, chunk in enumerate(entries):
            codec = Codec.UNFILTERED_NEXT if number else Codec.UNFILTERED_START
            content = b"".join(islice(pages, chunk.blocks))
            if chunk.codec is not codec or hashlib.sha256(content).digest() != chunk.id:
                return None
            found.append(content)
        return found

    def _pages(self, kernel: PageLike) -> Iterator[bytes]:
        """The kernel's pages that blocks are like, in the order in which these are packed."""
        for run in self._runs:
            for block in range(run.start, run.end):
                if (page := kernel(block)) is not None:
                    yield page
