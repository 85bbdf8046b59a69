"""The chunk map of an image: the state of each part of its device, cell by cell.

What is known comes from several places: the have file and the provisional ranges of each torrent,
the profile of a boot, and, if p2pcloopd runs, who sent each piece and what is on its way. This
module joins them, and reads no file itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from enum import IntEnum

from p2pcloop.formats.profile import Touch, seconds_of
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import ByteRange
from p2pcloop.picture.layout import Layout, Part
from p2pcloop.store.intervals import Ranges


class State(IntEnum):
    """What is true of a block."""

    EMPTY = 0
    """Nothing is stored for it: it reads as zeros."""
    MISSING = 1
    """Its chunk is not here."""
    COMING = 2
    """Its chunk is not here, and a piece of it is wanted now."""
    UNUSED = 3
    """Its chunk was fetched, and the boot did not read it."""
    HERE = 4
    """Its chunk is here, and the boot read it, or it never had to be fetched."""


EARLIER = "earlier"
"""The sender of pieces that were here when p2pcloopd started, or while it does not run."""

OWN = "own"
"""The sender of what was published here."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of one torrent.

    Attributes:
        piece_length: bytes of a piece.
        have: a byte for each piece, 1 where it is here.
        own: it was published here, so it was never fetched.
        ranges: bytes that are here of other pieces.
        coming: pieces that are wanted now.
        senders: a byte for each piece: 0 where it is not known who sent it, else the place in
            `names`, counted from 1; a larger number is one of many others. May be shorter.
        names: who sent pieces.
    """

    piece_length: int
    have: bytes
    own: bool = False
    ranges: Ranges = field(default_factory=Ranges)
    coming: frozenset[int] = frozenset()
    senders: bytes = b""
    names: Sequence[str] = ()

    def pieces(self, place: ByteRange) -> range:
        """The pieces that hold a range."""
        last = (place.offset + place.length - 1) // self.piece_length
        return range(place.offset // self.piece_length, last + 1)

    def has(self, place: ByteRange) -> bool:
        """Whether all bytes of a range are here."""
        pieces = self.pieces(place)
        if pieces.stop > len(self.have):
            return False
        if self.have.find(0, pieces.start, pieces.stop) < 0:
            return True
        return bool(len(self.ranges)) and all(
            self.have[offset // self.piece_length] for offset in self._gaps(place)
        )

    def sender(self, place: ByteRange) -> str:
        """Who sent the first piece of a range."""
        if self.own:
            return OWN
        for piece in self.pieces(place):
            number = self.senders[piece] if piece < len(self.senders) else 0
            if number:
                return self.names[number - 1] if number <= len(self.names) else "others"
        return EARLIER

    def is_coming(self, place: ByteRange) -> bool:
        """Whether a piece that holds bytes of a range is wanted now."""
        return not self.coming.isdisjoint(self.pieces(place))

    def _gaps(self, place: ByteRange) -> Iterator[int]:
        """An offset in each piece of a range that is not provisional as far as it lies in it."""
        for offset, length in self.ranges.gaps(place.offset, place.length):
            yield offset
            yield from range(
                (offset // self.piece_length + 1) * self.piece_length,
                offset + length,
                self.piece_length,
            )


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a map.

    Attributes:
        state: that of most of its blocks; those that are empty, and those that are missing while
            others are on their way, count for nothing.
        sender: who sent most of what is here, or None where nothing is.
        order: the place of its first touch among all, from 0 to 1; None where no boot touched it.
    """

    state: State
    sender: str | None
    order: float | None


@dataclass(frozen=True, slots=True)
class ChunkMap:
    """The map of an image's device, and sums over all of it.

    Attributes:
        blocks: of the device.
        per_cell: blocks of each cell.
        cells: in the order of the device.
        states: blocks of each state.
        senders: blocks that are here, by who sent them.
        touched: blocks that the boot touched.
        seconds: from its first touch to its last.
    """

    blocks: int
    per_cell: int
    cells: Sequence[Cell]
    states: Mapping[State, int]
    senders: Mapping[str, int]
    touched: int
    seconds: float


def make_map(
    layout: Layout, torrents: Mapping[bytes, Held], touches: Sequence[Touch] = ()
) -> ChunkMap:
    """Join what is known of an image.

    Args:
        layout: of the image.
        torrents: by info hash; of others nothing is here.
        touches: the first reads of a boot, in order.
    """
    reads = _Reads(touches)
    # Of a chunk that was read in part, all had to come.
    read = {part.place for part in layout.parts if reads.touched(part.start, part.count)}
    tallies = [_Tally() for _ in range(layout.cells)]
    states = dict.fromkeys(State, 0)
    senders: dict[str, int] = {}
    for part in layout.parts:
        state, sender = _judge(part, torrents, read)
        states[state] += part.count
        tallies[part.cell].add(state, sender, part.count)
        if sender is not None:
            senders[sender] = senders.get(sender, 0) + part.count
    orders = _orders(layout, touches)
    cells = [tally.cell(orders.get(number)) for number, tally in enumerate(tallies)]
    seconds = seconds_of(touches)
    touched = sum(touch.count for touch in touches)
    return ChunkMap(layout.blocks, layout.per_cell, cells, states, senders, touched, seconds)


def _judge(
    part: Part, torrents: Mapping[bytes, Held], read: Collection[ByteRange | None]
) -> tuple[State, str | None]:
    """The state of a part, and who sent it if it is here; `read` are places of chunks."""
    if part.empty:
        return State.EMPTY, None
    place = part.place
    if place is None:
        return (State.HERE, OWN) if part.known else (State.MISSING, None)
    held = torrents.get(place.torrent)
    if held is None:
        return State.MISSING, None
    if not held.has(place):
        return State.COMING if held.is_coming(place) else State.MISSING, None
    return State.HERE if held.own or place in read else State.UNUSED, held.sender(place)


def _orders(layout: Layout, touches: Sequence[Touch]) -> dict[int, float]:
    """The place of the first touch of each cell that was touched, from 0 to 1."""
    orders: dict[int, float] = {}
    for number, touch in enumerate(touches):
        if len(orders) == layout.cells:
            break
        last = min(touch.end, layout.blocks) - 1
        for cell in range(touch.start // layout.per_cell, last // layout.per_cell + 1):
            orders.setdefault(cell, number / len(touches))
    return orders


class _Reads:
    """The blocks that a boot touched, for looking up."""

    def __init__(self, touches: Iterable[Touch]) -> None:
        spans = sorted((touch.start, touch.end) for touch in touches)
        self._starts = [start for start, _ in spans]
        self._ends: list[int] = []
        end = 0
        for _, stop in spans:  # a later one may end before
            end = max(end, stop)
            self._ends.append(end)

    def touched(self, start: int, count: int) -> bool:
        """Whether one of these blocks was touched."""
        before = bisect_right(self._starts, start + count - 1)
        return before > 0 and self._ends[before - 1] > start


class _Tally:
    """Counts the blocks of one cell."""

    def __init__(self) -> None:
        self._states: dict[State, int] = {}
        self._senders: dict[str, int] = {}

    def add(self, state: State, sender: str | None, count: int) -> None:
        self._states[state] = self._states.get(state, 0) + count
        if sender is not None:
            self._senders[sender] = self._senders.get(sender, 0) + count

    def cell(self, order: float | None) -> Cell:
        states = dict(self._states)
        if len(states) > 1:
            states.pop(State.EMPTY, None)
        if State.COMING in states:
            states.pop(State.MISSING, None)
        # Of two that are equal the one that tells more is shown.
        state = max(states, key=lambda each: (states[each], each))
        sender = max(self._senders, key=lambda each: (self._senders[each], each), default=None)
        return Cell(state, sender, order)
