"""Hot layers: the blocks of a boot once more, in its order, and the device as it was."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import UsageError
from p2pcloop.formats.block_map import ZERO_CHUNK
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.index import open_index
from p2pcloop.formats.profile import Touch
from p2pcloop.formats.seal import Seal
from p2pcloop.image.api import ByteRange, Missing, never_missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import MergedImage
from p2pcloop.making import hot
from p2pcloop.making.delta import Reuse, pack_delta
from p2pcloop.making.hot import HOT_BLOCKS, HotLayer, adds_nothing, has_chunks, pack_hot
from p2pcloop.making.moved import LivePlaces
from p2pcloop.making.targets import DeviceTarget
from tests.support.images import MemoryContent, ignore
from tests.support.stacks import SMALL, BytesTarget, Stack

SECRET = bytes(range(32))


def block(kind: int) -> bytes:
    """Content that tells its kind; 0 is zeros."""
    return bytes(4096) if kind == 0 else random.Random(kind).randbytes(64) * 64


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
