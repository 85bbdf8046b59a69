"""Dictionaries of hot layers: kernels that go, tables that lie, and chunks in any order."""

from __future__ import annotations

import io
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.formats.block_map import ZERO_CHUNK, LayerMap, Run
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.index import MAX_RUNS
from p2pcloop.formats.seal import Seal
from p2pcloop.image import dictionary as image_dictionary
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.dictionary import MAX_CHUNKS, Dictionary
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.hot import HOT_BLOCKS, pack_hot
from p2pcloop.store.unpacked_kernels import PageLike
from tests.support.images import MemoryContent, ignore
from tests.support.kernels import FIRST_PAGE, KERNEL_PAGES, TOUCHES, page_of, state_of
from tests.support.stacks import BytesTarget, Stack

SECRET = bytes(range(32))
DICTIONARY = 3
"""Chunks of the dictionary of `hot_layer`."""


@cache
def hot_layer(*, private: bool) -> tuple[Stack, list[Chunk], list[bytes]]:
    """A hot layer alone, its table, and the content of its chunks."""
    content = state_of(1)
    pack = io.BytesIO()
    seal = Seal.new(SECRET) if private else None
    target = BytesTarget(content)
    made = pack_hot(target, TOUCHES, pack, ignore, seal=seal, kernels=[page_of(1)])
    stack = Stack()
    stack.push(made, pack.getvalue(), seal)
    layer = stack.open().layers[0]
    contents = [layer.read_chunk(number) for number in range(len(made.chunks))]
    assert len(contents) > DICTIONARY + 2
    return stack, list(made.chunks), contents


class Kernel:
    """A kernel that goes, or becomes another build, after some of its pages were read."""

    def __init__(self, pages: int, then: Callable[[int], bytes | None]) -> None:
        self.pages = pages
        self._before, self._then = page_of(1), then

    def __call__(self, block: int) -> bytes | None:
        if self.pages <= 0:
            return self._then(block)
        page = self._before(block)
        self.pages -= page is not None
        return page


def gone(_block: int) -> None:
    """A kernel that is not here."""


class Partly(MemoryContent):
    """Content of which some ranges are not here."""

    def __init__(self, data: bytes, absent: set[tuple[int, int]]) -> None:
        super().__init__(data)
        self.absent = absent

    def read(self, offset: int, length: int) -> bytes:
        if missing := self.missing(offset, length):
            raise Missing([missing])
        return super().read(offset, length)

    def missing(self, offset: int, length: int) -> ByteRange | None:
        return ByteRange(bytes(20), offset, length) if (offset, length) in self.absent else None


def opened(kernel: Callable[[int], bytes | None], *, private: bool, here: bool) -> Layer:
    """The layer on a machine that has all bytes of it, or only its index."""
    stack, chunks, _ = hot_layer(private=private)
    [(header, content, seal)] = stack.layers
    absent = {(header.index_length + chunk.offset, chunk.length) for chunk in chunks}
    content = Partly(bytes(content.data), set() if here else absent)
    return Layer(content, header, seal=seal, kernels=[page_of(2), kernel])


def read(layer: Layer, number: int) -> bytes:
    """Read a chunk, with what it lacks brought: just what `lacking` names, unless the kernel goes
    meanwhile."""
    content = layer._content
    assert isinstance(content, Partly)
    for _ in range(4):
        lacking = set(layer.lacking(number, set()).values())
        try:
            return layer.read_chunk(number)
        except Missing as missing:
            # Where the kernel has just gone, what its pages lack comes first.
            assert lacking <= set(missing.ranges) or not layer._dictionary.is_here([])
            assert not any(each.heal for each in missing.ranges)
            content.absent -= {(each.offset, each.length) for each in missing.ranges}
    raise AssertionError("a chunk lacks something again and again")


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.sampled_from([gone, page_of(2)]),
    st.integers(0, 700),
    st.lists(st.integers(0, 20), min_size=1, max_size=12),
)
def test_chunks_are_read_in_any_order_though_the_kernel_goes(
    private: bool,
    here: bool,
    then: Callable[[int], bytes | None],
    pages: int,
    order: list[int],
) -> None:
    layer = opened(Kernel(pages, then), private=private, here=here)
    _, _, contents = hot_layer(private=private)
    for number in (each % len(contents) for each in order):
        assert read(layer, number) == contents[number]


@pytest.mark.parametrize("order", [[4, 3, 5, 0, 3, 6], [6, 1, 2, 3, 4]])
def test_no_chunk_of_the_dictionary_is_read_for_those_behind_it(order: list[int]) -> None:
    """Nor is one named as missing, by any of the ways to ask."""
    _, chunks, _ = hot_layer(private=False)
    for kernel, first in ((page_of(1), DICTIONARY), (page_of(2), 0)):
        layer = opened(kernel, private=False, here=False)
        for number in order:
            needed = range(first if number >= first else 0, number + 1)
            assert layer.needs(number) == needed
            assert list(layer.lacking(number, set())) == list(needed)
            assert list(layer.lacking(number, {number - 1})) == [number]
            with pytest.raises(Missing) as missing:
                layer.read_chunk(number)
            assert [each.length for each in missing.value.ranges] == [
                chunks[each].length for each in needed
            ]


@pytest.mark.parametrize("pages", [0, 137, 138, 200, 274, 1000])
def test_chunks_are_decoded_ahead_though_the_kernel_goes(
    pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    _, _, contents = hot_layer(private=False)
    image = MergedImage([opened(Kernel(pages, gone), private=False, here=True)])
    for number in (DICTIONARY, DICTIONARY + 1):
        image.arrived(0, number)
    for number in (*range(DICTIONARY, len(contents)), 1, DICTIONARY):
        assert bytes(image.read_chunk(0, number)) == contents[number]
    image.close()


@pytest.mark.parametrize("count", [MAX_CHUNKS, MAX_CHUNKS + 1])
def test_a_dictionary_has_so_many_chunks_at_most(count: int) -> None:
    layer_map = LayerMap.from_runs([Run(FIRST_PAGE, 10, count, 0, HOT_BLOCKS)])
    assert Dictionary(layer_map, [page_of(1)]).chunks == (count if count <= MAX_CHUNKS else 0)
    assert Dictionary(layer_map, []).chunks == 0


def runs_of_zeros() -> Iterator[Run]:
    yield Run(0, 7, ZERO_CHUNK, 0, 0)
    yield Run(FIRST_PAGE, KERNEL_PAGES, ZERO_CHUNK, 0, 0)


@pytest.mark.parametrize(
    "runs",
    [
        [],
        list(runs_of_zeros()),
        [Run(FIRST_PAGE, KERNEL_PAGES, 2, 0, HOT_BLOCKS)],
        [Run(FIRST_PAGE, KERNEL_PAGES, 4, 0, HOT_BLOCKS)],
        [Run(FIRST_PAGE, KERNEL_PAGES, 5, 0, HOT_BLOCKS)],
        [Run(FIRST_PAGE + 1, KERNEL_PAGES - 1, 3, 0, HOT_BLOCKS)],
        [Run(FIRST_PAGE + 1000, KERNEL_PAGES, 3, 0, HOT_BLOCKS)],
    ],
    ids=["none", "zeros", "before", "behind", "far behind", "other blocks", "no kernel's"],
)
def test_of_a_map_that_lies_no_dictionary_is_here(runs: list[Run]) -> None:
    _, chunks, _ = hot_layer(private=False)
    dictionary = Dictionary(LayerMap.from_runs(runs), [page_of(1)])
    assert dictionary.is_here(chunks[: dictionary.chunks]) is False
    assert dictionary.contents(chunks[: dictionary.chunks]) is None


@pytest.mark.parametrize("blocks", [1, 256])
def test_entries_that_claim_other_counts_are_of_no_dictionary(blocks: int) -> None:
    _, chunks, _ = hot_layer(private=False)
    layer_map = LayerMap.from_runs([Run(FIRST_PAGE, KERNEL_PAGES, 3, 0, HOT_BLOCKS)])
    right = Dictionary(layer_map, [page_of(1)])
    wrong = Dictionary(layer_map, [page_of(1)])
    entries = [replace(chunks[0], blocks=blocks), *chunks[1:DICTIONARY]]
    assert wrong.is_here(entries) is False
    assert chunks[0].codec is Codec.UNFILTERED_START
    # Of these runs the dictionary is another than of the layer's: the first touches come first.
    assert right.is_here(chunks[:DICTIONARY]) is False


def test_the_kernel_that_a_dictionary_is_of_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[PageLike] = []
    monkeypatch.setattr(image_dictionary, "note_use", used.append)
    kernel = page_of(1)
    layer = opened(kernel, private=False, here=False)
    for number in (DICTIONARY + 1, DICTIONARY):
        read(layer, number)
    assert used == [kernel]


def test_a_map_of_many_runs_takes_little_memory_and_looks_at_few_blocks() -> None:
    """A hostile one: no hot layer that is packed has so many."""
    words = array("I", [0, 1, 3, 1 << 16]) * MAX_RUNS
    words[0::4] = array("I", range(0, 2 * MAX_RUNS, 2))
    layer_map = LayerMap(words)
    _, chunks, _ = hot_layer(private=False)
    asked = 0

    def kernel(_block: int) -> None:
        nonlocal asked
        asked += 1

    for each in (layer_map, LayerMap.from_runs([Run(0, 1 << 22, 3, 0, 256)])):
        tracemalloc.start()
        try:
            dictionary = Dictionary(each, [kernel])
            assert not dictionary.is_here(chunks[:DICTIONARY])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 48 << 20
    assert asked <= 2 << 18


def test_a_decoder_that_breaks_meanwhile_costs_no_dictionary() -> None:
    """A thread may find a chunk wrong between the look at what is needed and the decoding."""
    layer = opened(page_of(1), private=False, here=True)
    following = DICTIONARY + 1
    layer.read_chunk(DICTIONARY)
    assert list(layer.needs(following)) == [following]
    layer._chains.step((layer.header.layer_id, following), starts=False, ends=False).broken = True
    decode = layer._prepare(following)
    assert decode is not None
    assert decode() is None
    assert list(layer.needs(following)) == [DICTIONARY, following]
    assert layer.read_chunk(following) == hot_layer(private=False)[2][following]
