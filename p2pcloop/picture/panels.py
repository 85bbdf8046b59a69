"""The three panels of a chunk map, as both the SVG file and the web page show them.

A panel colours the same grid by one fact: what is here, who sent it, when the boot read it. Each
colour is a mark: a path of all its cells, and a line of a legend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from p2pcloop.frozen import dataclass
from p2pcloop.picture.chunk_map import EARLIER, OWN, Cell, ChunkMap, State
from p2pcloop.text import printable
from p2pcloop.units import BLOCK_SIZE, format_size
from p2pcloop.words import joined, tr

COLUMNS = 64
CELL = 5
"""Units of the picture that a cell is wide and high."""

WIDTH = COLUMNS * CELL

_SENDERS = 6
"""Senders with a colour of their own; the others share one."""

_ORDERS = 8
_LABEL = 40
"""Characters of a sender in a legend; what is longer is cut."""

_STATES = {
    State.HERE: tr("here"),
    State.UNUSED: tr("fetched, and not read by the boot"),
    State.COMING: tr("on its way"),
    State.MISSING: tr("missing"),
    State.EMPTY: tr("zeros, nothing is stored"),
}


@dataclass(frozen=True, slots=True)
class Mark:
    """The cells of one colour.

    Attributes:
        kind: the class of the style sheet.
        label: what it means, for people.
        path: of all its cells, as SVG has it; "" where there are none.
    """

    kind: str
    label: str
    path: str


@dataclass(frozen=True, slots=True)
class Panel:
    """The grid, coloured by one fact.

    Attributes:
        title: what it shows.
        marks: in the order of the legend.
    """

    title: str
    marks: Sequence[Mark]

    @property
    def told(self) -> str:
        """The same in words."""
        labels = joined("; ", (mark.label for mark in self.marks))
        return tr("{title}: {labels}.", title=self.title, labels=labels)


def grid_height(chunk_map: ChunkMap) -> int:
    """Units that the grid is high."""
    return -(-len(chunk_map.cells) // COLUMNS) * CELL


def draw_panels(chunk_map: ChunkMap) -> list[Panel]:
    """Colour the cells by state, by sender and by order; without a boot, and without anything that
    is here, these are left out."""
    panels = [_by_state(chunk_map)]
    if chunk_map.senders:
        panels.append(_by_sender(chunk_map))
    if chunk_map.touched:
        panels.append(_by_order(chunk_map))
    return panels


def _by_state(chunk_map: ChunkMap) -> Panel:
    labels = {
        state.name.lower(): tr("{what}, {size}", what=what, size=_size(chunk_map.states[state]))
        for state, what in _STATES.items()
        if chunk_map.states[state]
    }
    return _panel(tr("What is here"), chunk_map, labels, lambda cell: cell.state.name.lower())


def _by_sender(chunk_map: ChunkMap) -> Panel:
    senders = chunk_map.senders
    ranked = sorted(senders.keys() - {EARLIER, OWN}, key=lambda name: (-senders[name], name))
    kinds = {name: f"sender-{number}" for number, name in enumerate(ranked[:_SENDERS], 1)}
    kinds |= dict.fromkeys(ranked[_SENDERS:], "others") | {EARLIER: EARLIER, OWN: OWN}
    words = {kind: printable(name) for name, kind in kinds.items()}
    words |= {
        EARLIER: tr("here before, or not known who"),
        OWN: tr("published here"),
    }
    sizes: dict[str, int] = {}
    for name in [*ranked, OWN, EARLIER]:
        sizes[kinds[name]] = sizes.get(kinds[name], 0) + senders.get(name, 0)
    labels = {
        kind: tr("others, {size}", size=_size(n))
        if kind == "others"
        else tr("{what}, {size}", what=_cut(words[kind]), size=_size(n))
        for kind, n in sizes.items()
        if n
    }
    labels |= {"missing": tr("not here")}

    def kind_of(cell: Cell) -> str:
        if cell.sender is not None:
            return kinds[cell.sender]
        return "empty" if cell.state is State.EMPTY else "missing"

    return _panel(tr("Who sent it"), chunk_map, labels, kind_of)


def _by_order(chunk_map: ChunkMap) -> Panel:
    labels = {f"order-{number}": "" for number in range(1, _ORDERS + 1)}
    labels["order-1"] = tr("read first")
    labels[f"order-{_ORDERS}"] = tr("read last, after {seconds:.1f} s", seconds=chunk_map.seconds)
    labels["unread"] = tr("not read by it")

    def kind_of(cell: Cell) -> str:
        return "unread" if cell.order is None else f"order-{int(cell.order * _ORDERS) + 1}"

    title = tr("When the boot read it, {touched}", touched=_size(chunk_map.touched))
    return _panel(title, chunk_map, labels, kind_of)


def _panel(
    title: str, chunk_map: ChunkMap, labels: Mapping[str, str], kind_of: Callable[[Cell], str]
) -> Panel:
    """Make the marks of a panel; those without a line in the legend come first."""
    cells: dict[str, list[int]] = {}
    for number, cell in enumerate(chunk_map.cells):
        cells.setdefault(kind_of(cell), []).append(number)
    unnamed = sorted(cells.keys() - labels.keys())
    found = {**dict.fromkeys(unnamed, ""), **labels}
    return Panel(title, [Mark(k, label, _path(cells.get(k, ()))) for k, label in found.items()])


def _path(numbers: Iterable[int]) -> str:
    """Cells in order, as a path: neighbours in a row are one rectangle."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == sum(runs[-1]) and number % COLUMNS:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return "".join(
        f"M{first % COLUMNS * CELL} {first // COLUMNS * CELL}"
        f"h{count * CELL}v{CELL}h-{count * CELL}z"
        for first, count in runs
    )


def _size(blocks: int) -> str:
    return format_size(blocks * BLOCK_SIZE)


def _cut(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"
