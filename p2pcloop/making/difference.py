"""Counting the blocks in which two images differ, by maps and chunk ids, without content."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from p2pcloop.formats.block_map import ZERO_CHUNK, Piece
from p2pcloop.formats.chunk_table import Chunk
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.merged import MergedImage

_WINDOW = 4096
"""Blocks of one look-up in both maps."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of two images, over the blocks that both have.

    Attributes:
        blocks: at most this many differ.
        exact: exactly this many do.
    """

    blocks: int
    exact: bool


class Side:
    """One of the two images, and the function that fetches pages of its chunk tables."""

    def __init__(self, image: MergedImage, supply: Callable[[Missing], None]) -> None:
        self.image = image
        self._supply = supply

    def chunk(self, piece: Piece) -> Chunk:
        """The entry of a piece's chunk.

        Raises:
            P2pcloopError: it cannot be fetched.
        """
        while True:
            try:
                return self.image.layers[piece[0]].chunk(piece[1])
            except Missing as missing:
                self._supply(missing)

    def layer_id(self, piece: Piece) -> bytes:
        """The id of a piece's layer."""
        return self.image.layers[piece[0]].header.layer_id


def compare(one: Side, other: Side, blocks: range) -> Difference:
    """Count the blocks that may differ.

    Args:
        blocks: that are compared; both images have them.

    Raises:
        P2pcloopError: a page of a chunk table cannot be fetched.
    """
    count, exact = 0, True
    for first, second in _pairs(one.image, other.image, blocks):
        known = _compare_pieces(one, first, other, second)
        if known != "equal":
            count += first[3]
            exact = exact and known == "different"
    return Difference(count, exact)


def _pairs(one: MergedImage, other: MergedImage, blocks: range) -> Iterator[tuple[Piece, Piece]]:
    """The pieces of both images, cut at the borders of either: pairs of equal length."""
    for at in range(blocks.start, blocks.stop, _WINDOW):
        count = min(_WINDOW, blocks.stop - at)
        rights = iter(other.map.pieces(at, count))
        right = next(rights)
        for left in one.map.pieces(at, count):
            rest = left
            while rest[3]:
                if not right[3]:
                    right = next(rights)
                length = min(rest[3], right[3])
                yield (*rest[:3], length), (*right[:3], length)
                rest, right = _skip(rest, length), _skip(right, length)


def _skip(piece: Piece, blocks: int) -> Piece:
    layer, chunk, within, count = piece
    return layer, chunk, within + blocks, count - blocks


def _compare_pieces(one: Side, first: Piece, other: Side, second: Piece) -> str:
    """Compare two pieces of equal length: "equal", "different" (in every block) or "unknown"."""
    zeros = (first[1] == ZERO_CHUNK) + (second[1] == ZERO_CHUNK)
    if zeros == 2:
        return "equal"
    if zeros:
        return "unknown"
    if first[1:3] == second[1:3] and one.layer_id(first) == other.layer_id(second):
        return "equal"
    left, right = one.chunk(first), other.chunk(second)
    if left.id == right.id:
        # A chunk may hold a block twice: so other places in it may hold equal blocks.
        return "equal" if first[2] == second[2] else "unknown"
    return "different" if left.blocks == right.blocks == 1 else "unknown"
