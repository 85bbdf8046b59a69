"""The chunk map: every block counted once, in the state that what is known of it makes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.formats.block_map import ZERO_CHUNK, Run
from p2pcloop.formats.index import open_index
from p2pcloop.formats.profile import Touch
from p2pcloop.image.api import ByteRange
from p2pcloop.image.content import StoredContent
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import MergedImage
from p2pcloop.picture.chunk_map import EARLIER, OWN, Held, State, make_map
from p2pcloop.picture.layout import MAX_PIECES, WINDOWS, Layout, Part, lay_out
from p2pcloop.store.intervals import Ranges
from tests.support.images import PIECE, StoredLayer, make_image, make_layer

TORRENT = bytes(range(20))
BLOCKS = 64


@st.composite
def held(draw: st.DrawFn, pieces: int, size: int) -> Held:
    bits = st.lists(st.integers(0, 1), min_size=pieces, max_size=pieces).map(bytes)
    ranges = Ranges()
    at = 0
    while at < pieces * size and draw(st.booleans()):
        at += draw(st.integers(0, 2 * size))
        length = draw(st.integers(1, 2 * size))
        ranges.add(at, length)
        at += length
    return Held(
        size,
        draw(bits),
        own=draw(st.booleans()),
        ranges=ranges,
        coming=frozenset(draw(st.sets(st.integers(0, pieces - 1)))),
        senders=bytes(draw(st.lists(st.integers(0, 3), max_size=pieces))),
        names=["10.0.0.1:6881", "http://mirror/"],
    )


def here_by_bytes(known: Held, place: ByteRange) -> bool:
    """Whether each byte of a range is in a piece that is here or in a provisional range."""
    provisional = {byte for at, n in known.ranges for byte in range(at, at + n)}
    return all(
        known.have[byte // known.piece_length] or byte in provisional
        for byte in range(place.offset, place.offset + place.length)
    )


@st.composite
def layouts(draw: st.DrawFn, stored: int) -> Layout:
    """A device of `BLOCKS` blocks whose chunks lie anywhere in a torrent of `stored` bytes."""
    per_cell = draw(st.integers(1, BLOCKS + 3))
    parts, block = [], 0
    while block < BLOCKS:
        end = min(BLOCKS, (block // per_cell + 1) * per_cell)
        count = draw(st.integers(1, end - block))
        offset = draw(st.integers(0, stored - 1))
        place = ByteRange(TORRENT, offset, draw(st.integers(1, stored - offset)))
        empty = draw(st.booleans())
        cell = block // per_cell
        parts.append(Part(cell, block, count, empty=empty, place=None if empty else place))
        block += count
    return Layout(BLOCKS, per_cell, parts)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_each_block_is_counted_once_in_its_state(data: st.DataObject) -> None:
    known = data.draw(held(8, 10))
    layout = data.draw(layouts(80))
    starts = sorted(data.draw(st.sets(st.integers(0, BLOCKS - 1))))
    touches = [Touch(start, 1, after) for after, start in enumerate(starts)]
    found = make_map(layout, {TORRENT: known}, touches)
    assert sum(found.states.values()) == found.blocks == BLOCKS
    assert sum(found.senders.values()) == found.states[State.HERE] + found.states[State.UNUSED]
    here = sum(
        part.count for part in layout.parts if part.place and here_by_bytes(known, part.place)
    )
    assert sum(found.senders.values()) == here
    read = {touch.start // layout.per_cell for touch in touches}
    assert {n for n, cell in enumerate(found.cells) if cell.order is not None} == read
    assert all(cell.order is None or 0 <= cell.order < 1 for cell in found.cells)
    if known.own:
        assert found.states[State.UNUSED] == 0
        assert set(found.senders) <= {OWN}


def part_of(offset: int, length: int) -> Layout:
    place = ByteRange(TORRENT, offset, length)
    return Layout(4, 4, [Part(0, 0, 4, place=place)])


@pytest.mark.parametrize(
    ("known", "state", "sender"),
    [
        (Held(10, b"\0\0"), State.MISSING, None),
        (Held(10, b"\1\0", coming=frozenset([1])), State.COMING, None),
        (Held(10, b"\1\1"), State.UNUSED, EARLIER),
        (Held(10, b"\1\1", senders=b"\0\1", names=["a"]), State.UNUSED, "a"),
        (Held(10, b"\1\1", senders=b"\2\1", names=["a"]), State.UNUSED, "others"),
        (Held(10, b"\1\1", own=True), State.HERE, OWN),
    ],
)
def test_the_state_of_a_chunk_in_two_pieces(known: Held, state: State, sender: str | None) -> None:
    found = make_map(part_of(5, 10), {TORRENT: known})
    assert [(cell.state, cell.sender) for cell in found.cells] == [(state, sender)]


def test_what_a_boot_touched_was_read_and_its_whole_chunk_with_it() -> None:
    known = {TORRENT: Held(10, b"\1\1")}
    touched = make_map(part_of(5, 10), known, [Touch(3, 1, 0), Touch(9, 2, 1500)])
    assert touched.states[State.HERE] == 4
    assert (touched.touched, touched.seconds) == (3, 1.5)
    beside = make_map(part_of(5, 10), known, [Touch(4, 9, 0)])
    assert beside.states[State.UNUSED] == 4


def test_a_torrent_that_is_not_known_is_missing_and_a_file_is_here() -> None:
    assert make_map(part_of(5, 10), {}).states[State.MISSING] == 4
    local = make_map(Layout(4, 4, [Part(0, 0, 4)]), {})
    assert (local.states[State.HERE], local.senders) == (4, {OWN: 4})
    no_page = make_map(Layout(4, 4, [Part(0, 0, 4, known=False)]), {})
    assert no_page.states[State.MISSING] == 4


def test_a_cell_shows_most_of_its_blocks_and_what_is_on_its_way() -> None:
    places = [ByteRange(TORRENT, 10 * n, 10) for n in range(4)]
    parts = [Part(0, n, 1, place=place) for n, place in enumerate(places)]
    parts.append(Part(0, 4, 90, empty=True))

    def shown(have: bytes, coming: frozenset[int] = frozenset()) -> State:
        known = Held(10, have, coming=coming)
        return make_map(Layout(94, 94, parts), {TORRENT: known}).cells[0].state

    assert shown(b"\1\0\0\0") is State.MISSING
    assert shown(b"\1\1\1\0") is State.UNUSED
    assert shown(b"\0\0\0\0", frozenset([2])) is State.COMING


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 60), st.integers(0, 1 << 16))
def test_a_layout_has_each_block_once_with_the_place_of_its_chunk(
    per_chunk: int, blocks: int, max_cells: int, seed: int
) -> None:
    noise = random.Random(seed)
    chunks = [noise.randbytes(16) * 256 * per_chunk for _ in range(8)]
    runs, block = [], 0
    while block < blocks:
        count = min(noise.randint(1, per_chunk), blocks - block)
        chunk = noise.choice([ZERO_CHUNK, *range(8)])
        shape = (0, 0) if chunk == ZERO_CHUNK else (0, per_chunk)
        runs.append(Run(block, count, chunk, *shape))
        block += count + noise.randint(0, 2)
    image = MergedImage([make_layer([r for r in runs if r.end <= blocks], chunks, blocks)])
    layout = lay_out(image, max_cells)
    assert 1 <= layout.cells <= max_cells
    told = [(n, part) for part in layout.parts for n in range(part.start, part.start + part.count)]
    assert [n for n, _ in told] == list(range(blocks))
    for n, part in told:
        assert part.cell == n // layout.per_cell
        assert part.empty == (image.map.pieces(n, 1)[0][1] == ZERO_CHUNK)


def test_a_large_device_is_looked_at_in_windows() -> None:
    """Two cells of 2 GiB: each window is one part, whatever lies in it."""
    blocks = 1 << 20
    layer = make_layer([Run(0, 1, 0), Run(blocks // 2, 1, 0)], [bytes(4095) + b"1"], blocks)
    layout = lay_out(MergedImage([layer]), 2)
    assert len(layout.parts) == 2 * WINDOWS
    assert sum(part.count for part in layout.parts) == blocks
    assert [n for n, part in enumerate(layout.parts) if not part.empty] == [0, WINDOWS]


def test_a_cell_of_very_many_chunks_is_looked_at_in_windows() -> None:
    """Else a stranger's image with a chunk for each block would take the memory of half a million
    parts."""
    few, many = MAX_PIECES - 1, 2 * MAX_PIECES  # the rest of the first cell is one more piece
    chunks = [bytes(4095) + b"1", bytes(4095) + b"2"]
    runs = [Run(block, 1, block % 2, 0, 1) for block in (*range(few), *range(many, 2 * many))]
    layout = lay_out(MergedImage([make_layer(runs, chunks, 2 * many)]), 2)
    cut = [sum(part.cell == cell for part in layout.parts) for cell in range(2)]
    assert cut == [MAX_PIECES, WINDOWS]
    assert sum(part.count for part in layout.parts) == 2 * many


def test_the_places_of_a_stored_layer(tmp_path: Path) -> None:
    stored = StoredLayer(tmp_path, make_image(1 << 20))
    header = open_index(stored.content[: stored.ref.index_length])
    content = StoredContent(stored.directory, stored.ref)
    stored.store(range(stored.pieces))
    image = MergedImage([Layer(content, header)])
    places = [part.place for part in lay_out(image).parts if part.place is not None]
    assert {place.torrent for place in places} == {stored.ref.torrent}
    assert min(place.offset for place in places) == stored.ref.index_length
    known = Held(PIECE, bytes(stored.pieces))
    layout = lay_out(image)
    found = make_map(layout, {stored.ref.torrent: known})
    assert found.states[State.MISSING] == sum(each.count for each in layout.parts if each.place)


def test_a_chunk_has_no_place_before_its_page_of_the_table_is_here(tmp_path: Path) -> None:
    stored = StoredLayer(tmp_path, make_image(1 << 20))
    header = open_index(stored.content[: stored.ref.index_length])
    content = StoredContent(stored.directory, stored.ref)
    content.accept(
        ByteRange(stored.ref.torrent, header.length, header.map_length),
        stored.content[header.length : header.length + header.map_length],
    )
    layout = lay_out(MergedImage([Layer(content, header)]))
    assert {(each.place, each.known) for each in layout.parts if not each.empty} == {(None, False)}


def test_a_device_of_which_nothing_is_stored_is_empty() -> None:
    found = make_map(lay_out(MergedImage([make_layer([], [], 8)])), {})
    assert (found.states[State.EMPTY], found.senders, found.touched) == (8, {}, 0)
