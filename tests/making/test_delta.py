"""Deltas: what differs, nothing twice, no zeros, and the merged image is the target."""

import hashlib
import io
import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.index import open_index
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.making.changes import Base, find_changes
from p2pcloop.making.delta import Reuse, pack_delta
from p2pcloop.making.encoding import DELTA
from p2pcloop.making.moved import LivePlaces
from p2pcloop.making.targets import DeviceTarget, FileTarget, JoinedTarget, upper_stretches
from tests.support.images import MemoryContent, ignore
from tests.support.stacks import SMALL, BytesTarget, Stack

ZERO = bytes(4096)
GOLDEN = Path(__file__).parent.parent / "data" / "delta-v2.bin"


def block(number: int) -> bytes:
    """Content of block kind `number`; 0 is zeros, some compress and some do not."""
    if number == 0:
        return ZERO
    if number % 2:
        return (b"%d\n" % number * 4096)[:4096]
    return random.Random(number).randbytes(4096)


def device(kinds: list[int]) -> bytes:
    return b"".join(map(block, kinds))


def blocks_of(data: bytes) -> list[bytes]:
    return [data[at : at + 4096] for at in range(0, len(data), 4096)]


DEVICES = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(DEVICES, st.booleans(), st.integers(1, 3))
def test_a_stack_of_deltas_reads_as_the_last_target(
    devices: list[list[int]], sealed: bool, in_a_row: int
) -> None:
    secret = bytes(range(32)) if sealed else None
    stack = Stack()
    before = b""
    for kinds in devices:
        target = device(kinds)
        delta = stack.add(BytesTarget(target), secret=secret, shape=SMALL, in_a_row=in_a_row)
        assert stack.read() == target
        packed = stack.packed_blocks()
        assert len(packed) == len(set(packed)) == delta.stored_blocks
        assert ZERO not in packed
        old, new = blocks_of(before), blocks_of(target)
        changed = {b for n, b in enumerate(new) if n >= len(old) or b != old[n]}
        assert set(packed) <= changed
        if in_a_row == 1:
            # All that the base shows anywhere is referred to.
            assert not set(packed) & set(old)
        # What went beyond the end of a device that shrank may have to be zeroed again.
        assert all(new[n] == ZERO for n in stack.zero_runs())
        assert not any(n < len(old) and old[n] == ZERO for n in stack.zero_runs())
        before = target


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.data())
def test_only_what_differs_is_found(kinds: list[int], data: st.DataObject) -> None:
    stack = Stack()
    stack.add(BytesTarget(device(kinds)), shape=SMALL)
    size = len(kinds)
    new = data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size))
    changes = stack.changes(BytesTarget(device(new)))
    pairs = list(zip(kinds, new, strict=True))
    assert changes.blocks == sum(a != b and b != 0 for a, b in pairs)
    assert changes.zero_blocks == sum(a != b and b == 0 for a, b in pairs)
    assert changes.unknown == 0
    assert bool(changes) == (kinds != new)


def test_a_device_that_shrank_shows_nothing_old_when_it_grows_again() -> None:
    stack = Stack()
    for kinds in ([1, 2, 3, 4, 5], [1, 2], [1, 2, 0, 0, 0, 7]):
        stack.add(BytesTarget(device(kinds)), shape=SMALL)
        assert stack.read() == device(kinds)
    assert stack.zero_runs() == {2, 3, 4}


def test_twenty_deltas_on_each_other() -> None:
    noise = random.Random(5)
    kinds = [noise.randrange(50) for _ in range(300)]
    stack = Stack()
    stack.add(BytesTarget(device(kinds)), shape=SMALL)
    for _ in range(20):
        for _ in range(20):
            kinds[noise.randrange(300)] = noise.randrange(80)
        stack.add(BytesTarget(device(kinds)))
    assert len(stack.layers) == 21
    assert stack.read() == device(kinds)


@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 6), st.data())
def test_two_targets_behind_each_other_read_as_one(
    lower: int, gap: int, upper: int, data: st.DataObject
) -> None:
    parts = [bytes([n + 1]) * 4096 for n in range(lower + upper)]
    start = (lower + gap) * 4096
    whole = b"".join(parts[:lower]).ljust(start, b"\0") + b"".join(parts[lower:])

    def target(content: bytes) -> FileTarget:
        return FileTarget(lambda at, length: content[at : at + length], len(content))

    behind = target(b"".join(parts[lower:]))
    joined = JoinedTarget((0, target(b"".join(parts[:lower]))), (start, behind))
    assert joined.size == len(whole)
    assert list(joined.stretches()) == [(0, lower), (lower + gap, upper)]
    block = data.draw(st.integers(0, lower + gap + upper - 1))
    count = data.draw(st.integers(1, lower + gap + upper - block))
    assert joined.read(block, count) == whole[block * 4096 : (block + count) * 4096]


def test_a_moved_file_costs_no_data() -> None:
    file = [100 + n for n in range(40)]
    stack = Stack()
    stack.add(BytesTarget(device([*file, *[0] * 60])), shape=SMALL)
    delta = stack.add(BytesTarget(device([*[0] * 50, *file, *[0] * 10])))
    assert (delta.pack_length, delta.stored_blocks, delta.referred_blocks) == (0, 0, 40)
    assert delta.zero_blocks == 40
    assert stack.read() == device([*[0] * 50, *file, *[0] * 10])


def test_a_base_that_cannot_be_had_counts_as_changed() -> None:
    """Whole chunks are told by their ids all the same."""
    stack = Stack()
    stack.add(BytesTarget(device([1, 2, 3, 4, 5, 6, 7, 8])), shape=SMALL)
    header, content, _ = stack.layers[0]
    image = stack.open()
    asked = []

    def absent(offset: int, length: int) -> bytes:
        if offset >= header.index_length:
            raise Missing([ByteRange(bytes(20), offset, length)])
        return MemoryContent.read(content, offset, length)

    def supply(missing: Missing) -> bool:
        asked.append(missing)
        return False

    content.read = absent  # type: ignore[method-assign]  # a part of the content goes away
    target = BytesTarget(device([1, 2, 3, 4, 5, 6, 9, 8]))
    changes = find_changes(target, Base(image, supply), ignore)
    assert 2 <= changes.blocks == changes.unknown < 8
    assert len(asked) == 1
    pack = io.BytesIO()
    delta = pack_delta(changes, target, pack, ignore, Reuse())
    del content.read  # it is back
    stack.push(delta, pack.getvalue())
    assert stack.read() == target.data


def test_known_chunks_are_referred_to() -> None:
    """Equal runs of blocks make equal chunks, wherever they begin."""
    file = [200 + n for n in range(400)]
    one, other = Stack(), Stack()
    one.add(BytesTarget(device([1, *file])))
    layer = one.open().layers[0]
    header = layer.header
    table: dict[bytes, Chunk] = {}
    for number in range(header.chunk_count):
        table[layer.chunk(number).id] = layer.chunk(number)

    def known(chunk_id: bytes) -> tuple[bytes, Chunk] | None:
        return (header.layer_id, table[chunk_id]) if chunk_id in table else None

    delta = other.add(BytesTarget(device([3, 5, 7, *file])), known=known)
    assert delta.sources == [header.layer_id]
    assert delta.referred_blocks >= DELTA.least
    assert delta.stored_blocks + delta.referred_blocks == 403


def test_what_does_not_compress_is_stored_plainly() -> None:
    noise = random.Random(9)
    stack = Stack()
    data = noise.randbytes(64 * 4096)
    delta = stack.add(BytesTarget(data))
    assert delta.pack_length == len(data)
    assert stack.open().layers[0].chunk(0).codec is Codec.NONE


def test_what_is_alike_is_packed_together() -> None:
    """Programs that hold the same code, each at other offsets and further apart than a chunk."""
    noise = random.Random(3)
    library = b"".join(b"\x48\x89" + noise.randbytes(60) for _ in range(8192))
    programs = [noise.randbytes(1000 * n) + library for n in (1, 2, 3)]
    data = b"".join(program.ljust(-(-len(program) // 4096) * 4096, b"\0") for program in programs)
    stack = Stack()
    delta = stack.add(BytesTarget(data))
    assert delta.stored_blocks > 3 * len(library) // 4096
    # Strings are picked by what they hold: nearly all of the second and third copy is found.
    assert delta.pack_length < 1.5 * len(library)
    assert stack.read() == data


def test_a_stack_is_squashed_by_what_shows() -> None:
    stack = Stack()
    kinds = list(range(20, 60))
    stack.add(BytesTarget(device(kinds)), shape=SMALL)
    for first in (100, 200):
        for n in range(8):
            kinds[n if first == 100 else n + 2] = first + n
        stack.add(BytesTarget(device(kinds)), shape=SMALL)
    kinds[30] = 0
    stack.add(BytesTarget(device(kinds)), shape=SMALL)
    image = stack.open()
    target = DeviceTarget(ImageDevice(image), lambda _: None, upper_stretches(image, 1, image.size))
    flat = Stack(stack.layers[:1])
    changes = flat.changes(target)
    pack = io.BytesIO()
    find = LivePlaces(image, 1).find
    delta = pack_delta(changes, target, pack, ignore, Reuse(image, find, in_a_row=1))
    assert (delta.zero_blocks, delta.stored_blocks + delta.referred_blocks) == (1, 10)
    assert delta.referred_blocks >= 8
    header = open_index(delta.index)
    assert set(header.sources) <= {layer.header.layer_id for layer in image.layers[1:]}
    # With the packs of the others beside it, it reads as they did.
    joined = Stack([stack.layers[0], *stack.layers[1:]])
    joined.push(delta, pack.getvalue())
    assert joined.read() == device(kinds)


def test_no_more_sources_are_named_than_a_manifest_has_room_for() -> None:
    """What would need one more is packed."""
    stack = Stack()
    stack.add(BytesTarget(device([0] * 60)), shape=SMALL)
    kinds = [0] * 60
    for n in range(6):
        kinds[n * 8 : n * 8 + 4] = range(100 + 4 * n, 104 + 4 * n)
        stack.add(BytesTarget(device(kinds)), shape=SMALL)
    image = stack.open()
    lower = [layer.header.layer_id for layer in image.layers[:3]]
    for layers, more, named in (([], 2, 2), (lower, 0, 2), (lower, 1, 3), ([], 99, 6)):
        target = DeviceTarget(
            ImageDevice(image), lambda _: None, upper_stretches(image, 1, image.size)
        )
        changes = Stack(stack.layers[:1]).changes(target)
        pack = io.BytesIO()
        find = LivePlaces(image, 1).find
        reuse = Reuse(image, find, in_a_row=1, layers=layers, more_sources=more)
        delta = pack_delta(changes, target, pack, ignore, reuse)
        assert len(delta.sources) == named
        assert delta.stored_blocks == 24 - 4 * named
        joined = Stack([*stack.layers])
        joined.push(delta, pack.getvalue())
        assert joined.read() == device(kinds)


def test_who_goes_back_twice_gets_another_layer() -> None:
    """The delta of nothing but zeros, or of nothing but what moved, is the same each time."""
    one, other = device([1, 2, 3, 0, 0, 0]), device([0, 0, 3, 1, 2, 0])
    stack = Stack()
    stack.add(BytesTarget(one), shape=SMALL)
    for _ in range(3):
        for target in (other, one):
            layers = [header.layer_id for header, _, _ in stack.layers]
            stack.add(BytesTarget(target), shape=SMALL, layers=layers)
            assert stack.layers[-1][0].layer_id not in layers
            assert stack.read() == target


def test_the_golden_delta_is_made_and_read() -> None:
    """A delta with a chunk of its own, a chunk of a source, zeros: byte for byte."""
    base, target = device([2, 4, 6, 8, 10, 12]), device([2, 14, 0, 16, 4, 6])
    stack = Stack()
    stack.add(BytesTarget(base), shape=SMALL)
    changes = stack.changes(BytesTarget(target))
    assert (changes.blocks, changes.zero_blocks) == (4, 1)
    delta = stack.add(BytesTarget(target))
    content = bytes(stack.layers[-1][1].data)
    assert (delta.stored_blocks, delta.referred_blocks, delta.zero_blocks) == (2, 2, 1)
    assert content == GOLDEN.read_bytes()
    assert hashlib.sha256(content[: open_index(delta.index).length]).digest() == (
        stack.layers[-1][0].layer_id
    )
    assert stack.read() == target
