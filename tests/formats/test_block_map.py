"""Maps against a naive model: an array with one item for each block of the device."""

import itertools
import struct
import tracemalloc
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats import block_map as block_map_module
from p2pcloop.formats.block_map import (
    MAX_BLOCKS_PER_CHUNK,
    RUN,
    ZERO_CHUNK,
    BlockMap,
    LayerMap,
    Run,
    merge,
    pack_runs,
    unpack_runs,
)

BLOCKS = 40
CHUNKS = 30

Place = tuple[int, int, int]
"""Layer, chunk, block within the chunk."""

ZEROS: Place = (0, ZERO_CHUNK, 0)


@st.composite
def layers_of_runs(draw: st.DrawFn) -> list[Run]:
    """A valid map of one layer: sorted runs with gaps, zeros, and chunks begun in the middle."""
    cuts = sorted(draw(st.sets(st.integers(0, BLOCKS), min_size=2, max_size=10)))
    runs = []
    for start, end in itertools.pairwise(cuts):
        kind = draw(st.sampled_from(("gap", "zeros", "chunks", "chunks")))
        if kind == "zeros":
            runs.append(Run(start, end - start, ZERO_CHUNK, 0, 0))
        elif kind == "chunks":
            per_chunk = draw(st.integers(1, 5))
            within = draw(st.integers(0, per_chunk - 1))
            last = (within + end - start - 1) // per_chunk
            chunk = draw(st.integers(0, max(0, CHUNKS - 1 - last)))
            if chunk + last < CHUNKS:
                runs.append(Run(start, end - start, chunk, within, per_chunk))
    return runs


def merged_map(layers: list[list[Run]]) -> BlockMap:
    return merge([LayerMap.from_runs(runs) for runs in layers])


def paint(layers: list[list[Run]]) -> list[Place]:
    """What each block is, by looking at every block of every run."""
    model = [ZEROS] * BLOCKS
    for layer, runs in enumerate(layers):
        for run in runs:
            for n in range(run.count):
                if run.chunk == ZERO_CHUNK:
                    model[run.start + n] = ZEROS
                    continue
                chunk, within = divmod(run.chunk * run.per_chunk + run.within + n, run.per_chunk)
                model[run.start + n] = (layer, chunk, within)
    return model


def paint_merged(runs: list[Run], layers: int) -> list[Place]:
    """The same of runs that name their layers."""
    return paint([[run for run in runs if run.layer == layer] for layer in range(layers)])


def look_up(block_map: BlockMap, block: int, count: int) -> list[Place]:
    """What `pieces` says of each block."""
    places = []
    for layer, chunk, within, blocks in block_map.pieces(block, count):
        assert blocks > 0
        if chunk == ZERO_CHUNK:
            places += [ZEROS] * blocks
        else:
            places += [(layer, chunk, within + n) for n in range(blocks)]
    return places


@settings(max_examples=300, deadline=None)
@given(st.lists(layers_of_runs(), min_size=1, max_size=5), st.data())
def test_merged_layers_read_as_the_array_model(
    layers: list[list[Run]], data: st.DataObject
) -> None:
    # Painted block by block, and stretch by stretch as where borders are few.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_map_module, "MAX_PAINTED", data.draw(st.sampled_from((0, BLOCKS))))
        # In one go, and part by part as of large maps.
        at_once = data.draw(st.sampled_from((1, 3, 1 << 16)))
        patch.setattr(block_map_module, "_MERGED_AT_ONCE", at_once)
        block_map = merged_map(layers)
    merged = list(block_map)
    model = paint(layers)
    assert look_up(block_map, 0, BLOCKS) == model
    # The runs that it tells are a map of the same content, and hide what it hides.
    assert paint_merged(merged, len(layers)) == model
    held = {block for runs in layers for run in runs for block in range(run.start, run.end)}
    assert held == {block for run in merged for block in range(run.start, run.end)}
    for first, second in itertools.pairwise(merged):
        assert first.end <= second.start
    rows = list(zip(block_map._borders, block_map._rows, strict=False))
    assert all(one[0] < two[0] and one[1] != two[1] for one, two in itertools.pairwise(rows))
    block = data.draw(st.integers(0, BLOCKS - 1))
    count = data.draw(st.integers(1, BLOCKS - block))
    assert look_up(block_map, block, count) == model[block : block + count]


@settings(max_examples=100, deadline=None)
@given(layers_of_runs())
def test_runs_are_read_as_they_were_written(runs: list[Run]) -> None:
    assert list(unpack_runs(pack_runs(runs), blocks=BLOCKS, chunks=CHUNKS)) == runs


def test_pieces_end_where_chunks_end() -> None:
    block_map = merged_map([[Run(10, 9, 4, within=2, per_chunk=4)]])
    assert list(block_map.pieces(8, 13)) == [
        (0, ZERO_CHUNK, 0, 2),
        (0, 4, 2, 2),
        (0, 5, 0, 4),
        (0, 6, 0, 3),
        (0, ZERO_CHUNK, 0, 2),
    ]
    assert list(block_map.pieces(13, 2)) == [(0, 5, 1, 2)]


def test_runs_without_a_seam_are_joined() -> None:
    parts = [Run(0, 3, 7, 1, 4), Run(3, 5, 8, 0, 4), Run(8, 2, ZERO_CHUNK, 0, 0)]
    assert list(merged_map([[*parts, Run(10, 6, ZERO_CHUNK, 0, 0)]])) == [
        Run(0, 8, 7, 1, 4),
        Run(8, 8, ZERO_CHUNK, 0, 0),
    ]
    # A gap, another chunk, another size of chunk, another layer: each is a seam.
    assert len(list(merged_map([[Run(0, 4, 0, 0, 4), Run(5, 4, 1, 0, 4)]]))) == 2
    assert len(list(merged_map([[Run(0, 4, 0, 0, 4), Run(4, 4, 2, 0, 4)]]))) == 2
    assert len(list(merged_map([[Run(0, 4, 0, 0, 4), Run(4, 4, 1, 0, 2)]]))) == 2
    assert len(list(merged_map([[Run(0, 4, 0, 0, 4)], [Run(4, 4, 1, 0, 4)]]))) == 2


def test_a_write_in_the_middle_of_a_chunk_splits_the_run_below() -> None:
    base, top = [Run(0, 32, 0, 0, 16)], [Run(5, 2, 0)]
    assert list(merged_map([base, top])) == [
        Run(0, 5, 0, 0, 16, layer=0),
        Run(5, 2, 0, 0, 1, layer=1),
        Run(7, 25, 0, 7, 16, layer=0),
    ]


def test_the_largest_device_of_zeros_is_one_look_up() -> None:
    half = 1 << 31
    runs = [Run(0, half, ZERO_CHUNK, 0, 0), Run(half, half, ZERO_CHUNK, 0, 0)]
    block_map = merged_map([runs])
    assert sum(piece[3] for piece in block_map.pieces(0, 1 << 32)) == 1 << 32


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([(0, 2, 0, 0, 1), (1, 2, 0, 0, 1)], "overlap"),
        ([(4, 2, 0, 0, 1), (0, 2, 0, 0, 1)], "overlap"),
        ([(0, 0, 0, 0, 1)], "empty"),
        ([(BLOCKS, 1, 0, 0, 1)], "outside the device"),
        ([(BLOCKS - 1, 2, 0, 0, 1)], "outside the device"),
        ([(0, 0xFFFFFFFF, 0, 0, 1)], "outside the device"),
        ([(0xFFFFFFFF, 0xFFFFFFFF, 0, 0, 1)], "outside the device"),
        ([(0xFFFFFFFF, 1, ZERO_CHUNK, 0, 0)], "outside the device"),
        ([(0, 1, ZERO_CHUNK, 0, 1)], "zeros"),
        ([(0, 1, ZERO_CHUNK, 1, 0)], "zeros"),
        ([(0, 1, 0, 0, 0)], "outside its chunk"),
        ([(0, 1, 0, 3, 3)], "outside its chunk"),
        ([(0, 1, 0, 0xFFFF, 0xFFFF)], "outside its chunk"),
        ([(0, 1, 0, 0, MAX_BLOCKS_PER_CHUNK + 1)], "outside its chunk"),
        ([(0, 1, CHUNKS, 0, 1)], "past the last chunk"),
        ([(0, 2, CHUNKS - 1, 0, 1)], "past the last chunk"),
        ([(0, 2, CHUNKS - 1, 3, 4)], "past the last chunk"),
        ([(0, 1, ZERO_CHUNK - 1, 0, 1)], "past the last chunk"),
    ],
)
def test_hostile_runs_are_refused(runs: list[tuple[int, ...]], message: str) -> None:
    data = b"".join(struct.pack("<IIIHH", *run) for run in runs)
    with pytest.raises(FormatError, match=message):
        unpack_runs(data, blocks=BLOCKS, chunks=CHUNKS)


def test_the_same_runs_just_inside_the_limits_are_taken() -> None:
    data = pack_runs(
        [Run(0, 1, CHUNKS - 1, MAX_BLOCKS_PER_CHUNK - 1, MAX_BLOCKS_PER_CHUNK), Run(39, 1, 29)]
    )
    assert len(unpack_runs(data, blocks=BLOCKS, chunks=CHUNKS)) == 2
    last = pack_runs([Run(0xFFFFFFFF, 1, ZERO_CHUNK, 0, 0)])
    assert list(unpack_runs(last, blocks=1 << 32, chunks=0).ends) == [1 << 32]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=5 * RUN.size))
def test_any_bytes_are_a_map_inside_device_and_table_or_an_error(data: bytes) -> None:
    try:
        runs = unpack_runs(data, blocks=BLOCKS, chunks=CHUNKS)
    except FormatError:
        return
    for _, chunk, within, count in merge([runs]).pieces(0, BLOCKS):
        assert chunk == ZERO_CHUNK or (chunk < CHUNKS and within + count <= MAX_BLOCKS_PER_CHUNK)


def test_memory_of_merging_the_largest_maps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, layers, at_once = 1 << 15, 4, 1 << 11
    monkeypatch.setattr(block_map_module, "_MERGED_AT_ONCE", at_once)
    words = array("I")
    for n in range(runs // layers):
        words.extend((n << 10, 1, n, 1 << 16))
    maps = [LayerMap(words) for _ in range(layers)]
    tracemalloc.start()
    try:
        merge(maps)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 40 bytes a run, and what is merged at once; it was 250 bytes a run.
    assert peak < 40 * runs + 400 * at_once
