"""Hot layers: the blocks of a boot once more, in its order, and the device as it was."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import UsageError
from p2pcloop.formats.block_map import ZERO_CHUNK, LayerMap, Run
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.index import open_index
from p2pcloop.formats.profile import Touch
from p2pcloop.formats.seal import Seal
from p2pcloop.image.api import ByteRange, Missing, never_missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.dictionary import Dictionary
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import MergedImage
from p2pcloop.making import hot
from p2pcloop.making.delta import Reuse, pack_delta
from p2pcloop.making.hot import HOT_BLOCKS, HotLayer, adds_nothing, has_chunks, pack_hot
from p2pcloop.making.moved import LivePlaces
from p2pcloop.making.targets import DeviceTarget
from tests.support.images import MemoryContent, ignore, read_views
from tests.support.kernels import (
    FIRST_PAGE,
    KERNEL_PAGES,
    TOUCHES,
    block,
    page_of,
    state_of,
    without_dictionary,
)
from tests.support.stacks import SMALL, BytesTarget, Stack

SECRET = bytes(range(32))


def device(kinds: Sequence[int]) -> bytes:
    return b"".join(map(block, kinds))


def of(*touches: tuple[int, int]) -> list[Touch]:
    return [Touch(start, count, 0) for start, count in touches]


def add(stack: Stack, touches: list[Touch], seal: Seal | None = None) -> HotLayer:
    """Lay the hot layer of what a stack holds on top of it."""
    pack = io.BytesIO()
    made = pack_hot(BytesTarget(stack.read()), touches, pack, ignore, seal=seal)
    stack.push(made, pack.getvalue(), seal)
    return made


def top(stack: Stack) -> Layer:
    header, content, seal = stack.layers[-1]
    return Layer(content, header, seal=seal)


def nothing_added(stack: Stack) -> bool:
    """Whether the top layer of a stack is told to add nothing."""
    image, below = stack.open(), Stack(stack.layers[:-1]).open()
    return adds_nothing(image, below, target(image), target(below))


def target(image: MergedImage) -> DeviceTarget:
    def fail(missing: Missing) -> None:
        raise AssertionError(missing)

    return DeviceTarget(ImageDevice(image), fail, ())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=200),
    st.lists(st.tuples(st.integers(0, 199), st.integers(1, 150)), max_size=12),
    st.booleans(),
)
def test_any_touches_of_any_image_read_back_the_same(
    kinds: list[int], touches: list[tuple[int, int]], private: bool
) -> None:
    fitting = [
        (start % len(kinds), min(count, len(kinds) - start % len(kinds)))
        for start, count in touches
    ]
    touched = dict.fromkeys(
        number for start, count in fitting for number in range(start, start + count)
    )
    stack = Stack()
    stack.add(BytesTarget(device(kinds)), shape=SMALL)
    seal = Seal.new(SECRET) if private else None
    if not any(kinds[number] for number in touched):
        with pytest.raises(UsageError, match="no block"):
            add(stack, of(*fitting), seal)
        return
    made = add(stack, of(*fitting), seal)
    assert stack.read() == device(kinds)
    # What is packed: each block once, in order of first touch, and no zeros.
    packed = [number for number in touched if kinds[number]]
    assert b"".join(stack.packed_blocks()) == device([kinds[number] for number in packed])
    assert (made.stored_blocks, made.zero_blocks) == (len(packed), len(touched) - len(packed))
    assert stack.zero_runs() == {number for number in touched if not kinds[number]}
    assert nothing_added(stack)


def test_chunks_are_of_a_boots_order_and_runs_of_the_devices() -> None:
    kinds = list(range(1, 301))
    stack = Stack()
    stack.add(BytesTarget(device(kinds)))
    made = add(stack, of((200, 90), (10, 20), (205, 3), (0, 40)))
    assert [chunk.blocks for chunk in made.chunks] == [HOT_BLOCKS, HOT_BLOCKS, 2]
    runs = list(top(stack).take_map())
    assert [(run.start, run.count, run.chunk, run.within) for run in runs] == [
        (0, 10, 1, 90 + 20 - 64),
        (10, 20, 1, 90 - 64),
        (30, 10, 1, 90 + 30 - 64),
        (200, 90, 0, 0),
    ]


def test_the_same_touches_make_the_same_layer() -> None:
    stack = Stack()
    stack.add(BytesTarget(device([1, 2, 0, 3, 4, 5])))
    one, other = (Stack([*stack.layers]) for _ in range(2))
    assert add(one, of((4, 2), (0, 3))).index == add(other, of((4, 2), (0, 3))).index
    assert one.layers[-1][1].data == other.layers[-1][1].data


def test_a_layer_that_changes_a_block_adds_something() -> None:
    kinds = [1, 2, 3, 0, 0, 6]
    for changed in ([1, 2, 3, 0, 0, 7], [1, 2, 3, 9, 0, 6], [1, 0, 3, 0, 0, 6]):
        stack = Stack()
        stack.add(BytesTarget(device(kinds)), shape=SMALL)
        stack.add(BytesTarget(device(changed)), shape=SMALL)
        assert not nothing_added(stack)
        add(stack, of((0, 6)))
        assert nothing_added(stack)
        assert stack.read() == device(changed)


def test_a_layer_that_makes_the_device_longer_adds_something() -> None:
    stack = Stack()
    stack.add(BytesTarget(device([1, 2])), shape=SMALL)
    stack.add(BytesTarget(device([1, 2, 0])), shape=SMALL)
    assert not nothing_added(stack)


def test_what_holds_the_same_chunks_is_told_without_their_content() -> None:
    stack = Stack()
    stack.add(BytesTarget(device(range(1, 100))))
    made = add(stack, of((3, 80)), Seal.new(SECRET))
    again = add(Stack(stack.layers[:-1]), of((3, 80)), Seal.new(SECRET))
    other = add(Stack(stack.layers[:-1]), of((4, 80)), Seal.new(SECRET))
    assert made.index != again.index
    layer, asked = missing_once(stack)
    assert has_chunks(layer, again.chunks, asked.append)
    assert len(asked) == 1
    assert not has_chunks(layer, other.chunks, asked.append)
    assert not has_chunks(layer, again.chunks[:-1], asked.append)


def missing_once(stack: Stack) -> tuple[Layer, list[Missing]]:
    """The top layer, whose chunk table comes when it was asked for; and where that is noted."""
    header, content, seal = stack.layers[-1]
    layer = Layer(content, header, seal=seal)
    asked: list[Missing] = []

    def read(offset: int, length: int) -> bytes:
        assert offset < header.index_length, "content was read"
        if not asked:
            raise Missing([ByteRange(bytes(20), offset, length)])
        return MemoryContent.read(content, offset, length)

    content.read = read  # type: ignore[method-assign]  # the table is not here at first
    return layer, asked


def test_a_layer_that_is_encoded_in_another_way_is_not_the_same() -> None:
    stack = Stack()
    stack.add(BytesTarget(device(range(1, 65))), shape=SMALL)
    made = add(stack, of((0, 64)))
    older = [replace(chunk, codec=Codec.ZSTD) for chunk in made.chunks]
    assert has_chunks(top(stack), made.chunks, never_missing)
    assert not has_chunks(top(stack), older, never_missing)


def test_without_a_kernel_each_block_is_read_once() -> None:
    class Counting(BytesTarget):
        blocks = 0

        def read(self, block: int, count: int) -> bytes:
            self.blocks += count
            return super().read(block, count)

    target = Counting(device(range(1, 301)))
    pack_hot(target, of((0, 300)), io.BytesIO(), ignore)
    assert target.blocks == 300


def test_a_chain_ends_and_another_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot, "CHAIN_CHUNKS", 2)
    stack = Stack()
    stack.add(BytesTarget(device(range(1, 301))))
    made = add(stack, of((0, 300)))
    start, follows = Codec.CHAIN_START, Codec.CHAIN_NEXT
    assert [chunk.codec for chunk in made.chunks] == [start, follows, start, follows, start]
    assert stack.read() == device(range(1, 301))


def test_a_delta_refers_to_no_chunk_of_a_chain() -> None:
    """They cannot be decoded alone: it refers to the same blocks below."""
    kinds = list(range(1, 81))
    stack = Stack()
    base = stack.add(BytesTarget(device(kinds)), shape=SMALL)
    add(stack, of((0, 64)))
    moved = device([*range(200, 216), *kinds[16:64], *kinds[:16]])
    delta = stack.add(BytesTarget(moved), shape=SMALL)
    assert delta.sources == [open_index(base.index).layer_id]
    assert (delta.stored_blocks, delta.referred_blocks) == (16, 16)
    assert stack.read() == moved


@pytest.mark.parametrize("lies", [False, True])
def test_a_squash_refers_to_what_lies_below_a_hot_layer(lies: bool) -> None:
    """Unless the layer of chains has other content than what lies below it."""
    kinds = list(range(1, 81))
    stack = Stack()
    stack.add(BytesTarget(device(kinds)), shape=SMALL)
    delta = stack.add(BytesTarget(device([*range(200, 232), *kinds[32:]])), shape=SMALL)
    if lies:
        other = Stack()
        other.add(BytesTarget(device(range(300, 380))))
        add(other, of((0, 64)))
        stack.layers.append(other.layers[-1])
    else:
        add(stack, of((0, 64)))
    image, target = stack.open(), BytesTarget(stack.read())
    changes = Stack(stack.layers[:1]).changes(target)
    reuse = Reuse(image, LivePlaces(image, 1).find, in_a_row=1)
    squashed = pack_delta(changes, target, io.BytesIO(), ignore, reuse, shape=SMALL)
    if lies:
        assert (squashed.stored_blocks, squashed.sources) == (64, [])
    else:
        assert squashed.sources == [open_index(delta.index).layer_id]
        assert (squashed.stored_blocks, squashed.referred_blocks) == (0, 32)


def test_of_too_many_touches_the_first_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot, "MAX_HOT_BLOCKS", 2 * HOT_BLOCKS)
    stack = Stack()
    stack.add(BytesTarget(device(range(1, 400))))
    made = add(stack, of((100, 80), (0, 30), (200, 190)))
    assert made.stored_blocks == 110
    assert ZERO_CHUNK not in [run.chunk for run in top(stack).take_map()]


@pytest.mark.parametrize("private", [False, True])
def test_a_machine_that_has_the_kernel_needs_no_dictionary(private: bool) -> None:
    content = state_of(1)
    stack = Stack()
    stack.add(BytesTarget(content))
    pack = io.BytesIO()
    seal = Seal.new(SECRET) if private else None
    kernels = [page_of(2), page_of(1)]
    target = BytesTarget(content)
    made = pack_hot(target, TOUCHES, pack, ignore, seal=seal, kernels=kernels)
    stack.push(made, pack.getvalue(), seal)
    assert stack.read() == content
    dictionary = min(run.chunk for run in top(stack).take_map() if run.chunk != ZERO_CHUNK)
    assert dictionary == 3
    partly = without_dictionary(stack, made.chunks[dictionary:])
    for kernels in ([page_of(1)], [page_of(2), page_of(1)]):
        image = partly.open(kernels)
        assert len(image.layers[-1].read_chunk(dictionary)) == made.chunks[dictionary].size
        assert read_views(ImageDevice(image), 0, [image.size]) == content
    for kernels in ([], [page_of(2)]):
        image = partly.open(kernels)
        with pytest.raises(Missing) as missing:
            image.layers[-1].read_chunk(dictionary)
        assert len(missing.value.ranges) == dictionary
    assert nothing_added(stack)


def test_blocks_that_are_like_a_dictionary_take_few_bytes() -> None:
    content = state_of(1)
    packed = io.BytesIO()
    made = pack_hot(BytesTarget(content), TOUCHES, packed, ignore, kernels=[page_of(1)])
    plain = pack_hot(BytesTarget(content), TOUCHES, io.BytesIO(), ignore)
    dictionary = sum(chunk.length for chunk in made.chunks[:3])
    assert made.pack_length - dictionary < plain.pack_length / 3
    assert (made.stored_blocks, made.zero_blocks) == (plain.stored_blocks, plain.zero_blocks)


def test_of_another_kernel_no_dictionary_is_made() -> None:
    content = state_of(1)
    made = pack_hot(BytesTarget(content), TOUCHES, io.BytesIO(), ignore, kernels=[page_of(2)])
    plain = pack_hot(BytesTarget(content), TOUCHES, io.BytesIO(), ignore)
    assert made == plain


def test_a_dictionary_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks beyond it are packed as all others, and read back with the kernel and without it."""
    monkeypatch.setattr(hot, "MAX_DICTIONARY_CHUNKS", 1)
    content = state_of(1)
    stack = Stack()
    stack.add(BytesTarget(content))
    pack = io.BytesIO()
    made = pack_hot(BytesTarget(content), TOUCHES, pack, ignore, kernels=[page_of(1)])
    stack.push(made, pack.getvalue())
    image = without_dictionary(stack, made.chunks[1:]).open([page_of(1)])
    assert len(image.layers[-1].read_chunk(1)) == made.chunks[1].size
    assert read_views(ImageDevice(image), 0, [image.size]) == content == stack.read()


def test_a_table_that_begins_with_other_codecs_has_no_dictionary() -> None:
    content = state_of(1)
    stack = Stack()
    stack.add(BytesTarget(content))
    made = pack_hot(BytesTarget(content), TOUCHES, io.BytesIO(), ignore, kernels=[page_of(1)])
    layer_map = LayerMap.from_runs([Run(FIRST_PAGE, KERNEL_PAGES, 3, 0, HOT_BLOCKS)])
    for codecs in ([8, 9, 9], [8, 9, 8], [6, 9, 9], [1, 1, 1]):
        entries = [
            replace(chunk, codec=Codec(codec))
            for chunk, codec in zip(made.chunks, codecs, strict=False)
        ]
        assert Dictionary(layer_map, [page_of(1)]).is_here(entries) is False


def test_pages_beyond_the_end_of_a_dictionary_are_behind_those_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Although they are touched at once: a reader counts the pages in the order of the chunks."""
    monkeypatch.setattr(hot, "MAX_DICTIONARY_CHUNKS", 1)
    content = state_of(1)
    stack = Stack()
    stack.add(BytesTarget(content))
    pack = io.BytesIO()
    touches = of((290, 3), (FIRST_PAGE, KERNEL_PAGES), (20, 60))
    made = pack_hot(BytesTarget(content), touches, pack, ignore, kernels=[page_of(1)])
    stack.push(made, pack.getvalue())
    image = without_dictionary(stack, made.chunks[1:]).open([page_of(1)])
    assert len(image.layers[-1].read_chunk(1)) == made.chunks[1].size
    assert read_views(ImageDevice(image), 0, [image.size]) == content == stack.read()
