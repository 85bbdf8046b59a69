"""The index of a delta, and the layers that it refers to."""

from __future__ import annotations

from collections.abc import Sequence

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import Run
from p2pcloop.formats.chunk_table import Chunk
from p2pcloop.formats.index import MAX_SOURCES, build_index, open_index
from p2pcloop.formats.seal import Seal


class Sources:
    """The layers that a delta refers to.

    Attributes:
        layers: ids that the image names already.
        named: ids of the sources, in the order of their numbers.
    """

    def __init__(self, layers: Sequence[bytes], more: int) -> None:
        """`more` is the number of sources that may be named besides `layers`."""
        self.layers = layers
        self.named: list[bytes] = []
        self._more = more

    def number(self, layer_id: bytes) -> int | None:
        """The number of a source, from 1 on; None if no more may be named."""
        if layer_id not in self.named:
            new = layer_id not in self.layers
            if len(self.named) == MAX_SOURCES or (new and not self._more):
                return None
            self._more -= new
            self.named.append(layer_id)
        return self.named.index(layer_id) + 1


def build_delta_index(
    runs: Sequence[Run],
    chunks: Sequence[Chunk],
    sources: Sources,
    *,
    image_size: int,
    pack_length: int,
    seal: Seal | None,
) -> bytes:
    """Build the index of a layer that the image does not have yet.

    If a user goes back to an older state, the delta may be the same as an earlier one, if it packs
    nothing. An additional source, to which no chunk refers, makes its id another.

    Args:
        runs, chunks, image_size, pack_length, seal: as of `build_index`.
        sources: one may be added.

    Raises:
        FormatError: as of `build_index`, or no source makes it another layer.
    """
    spare = [layer for layer in sources.layers if layer not in sources.named]
    for more in ([], *([layer] for layer in spare)):
        index = build_index(
            runs,
            chunks,
            image_size=image_size,
            pack_length=pack_length,
            sources=sources.named + more,
            seal=seal,
        )
        if open_index(index).layer_id not in sources.layers:
            sources.named += more
            return index
    raise FormatError(
        "the image has a layer already that is just the same",
        hint="join its layers first: `p2pcloop squash`",
    )
