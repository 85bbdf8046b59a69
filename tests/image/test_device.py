"""The device over image and overlay against a bytearray; and nothing half done when data lacks."""

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2pcloop.formats.block_map import Run
from p2pcloop.formats.manifest import Manifest
from p2pcloop.formats.overlay import Overlay, State
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.stored import StoredImage
from tests.support.images import StoredLayer, make_image, make_layer, read_views

BLOCKS = 12
SECTORS = BLOCKS * 8


def make_device(folder: Path) -> tuple[ImageDevice, bytes]:
    """A device of 12 blocks over chunks of 3 blocks with holes between, and what it reads as."""
    chunks = [b"".join(bytes([n]) * 4096 for n in fills) for fills in ((1, 2, 3), (4, 5, 6))]
    layer = make_layer([Run(1, 5, 0, 1, 3), Run(8, 3, 1, 0, 3)], chunks, BLOCKS)
    content = bytearray(BLOCKS * 4096)
    content[4096 : 6 * 4096] = (chunks[0] + chunks[1])[4096:]
    content[8 * 4096 : 11 * 4096] = chunks[1]
    image = MergedImage([layer])
    overlay = Overlay.create(folder / "o", image_id=image.image_id, image_size=image.size)
    return ImageDevice(image, overlay), bytes(content)


extents = st.integers(0, SECTORS - 1).flatmap(
    lambda first: st.tuples(st.just(first), st.integers(1, min(30, SECTORS - first)))
)


class DeviceMachine(RuleBasedStateMachine):
    """Whatever is written, zeroed and discarded reads as on a bytearray."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()

    @initialize()
    def start(self) -> None:
        self.device, content = make_device(Path(self.folder.name))
        self.model = bytearray(content)

    def teardown(self) -> None:
        self.device.close()
        self.folder.cleanup()

    @rule(extent=extents, fill=st.integers(1, 255), cut=st.integers(0, 30 * 512))
    def write(self, extent: tuple[int, int], fill: int, cut: int) -> None:
        offset, length = extent[0] * 512, extent[1] * 512
        data = bytes((fill + n) % 256 for n in range(251)) * (length // 251 + 1)
        views = [memoryview(data)[: min(cut, length)], memoryview(data)[min(cut, length) : length]]
        self.device.write(offset, views)
        self.model[offset : offset + length] = data[:length]

    @rule(extent=extents, may_unmap=st.booleans())
    def write_zeroes(self, extent: tuple[int, int], may_unmap: bool) -> None:
        offset, length = extent[0] * 512, extent[1] * 512
        self.device.write_zeroes(offset, length, may_unmap=may_unmap)
        self.model[offset : offset + length] = bytes(length)

    @rule(extent=extents)
    def discard(self, extent: tuple[int, int]) -> None:
        offset, end = extent[0] * 512, (extent[0] + extent[1]) * 512
        self.device.discard(offset, end - offset)
        first, last = -(-offset // 4096) * 4096, end // 4096 * 4096
        if first < last:
            self.model[first:last] = bytes(last - first)

    @rule(extent=extents, cut=st.integers(0, 30 * 512))
    def read(self, extent: tuple[int, int], cut: int) -> None:
        offset, length = extent[0] * 512, extent[1] * 512
        views = [min(cut, length), 0, length - min(cut, length)]
        assert read_views(self.device, offset, views) == self.model[offset : offset + length]

    @rule(extent=extents)
    def tell_extents(self, extent: tuple[int, int]) -> None:
        position, end = extent[0] * 512, sum(extent) * 512
        kinds = []
        for length, zeros in self.device.extents(position, end - position):
            assert length > 0
            assert not zeros or not any(self.model[position : position + length])
            kinds.append(zeros)
            position += length
        assert position == end
        assert all(one != other for one, other in itertools.pairwise(kinds))

    @rule(first=st.integers(0, BLOCKS - 1), count=st.integers(1, BLOCKS))
    def read_the_short_way(self, first: int, count: int) -> None:
        count = min(count, BLOCKS - first)
        buffer = bytearray(b"\xaa" * count * 4096)
        if self.device.copy_decoded(first * 4096, memoryview(buffer)):
            assert buffer == self.model[first * 4096 : (first + count) * 4096]
        else:
            assert buffer == b"\xaa" * count * 4096

    @rule()
    def flush_and_open_again(self) -> None:
        self.device.prepare_flush()()
        overlay = self.device.overlay
        assert overlay is not None
        path = overlay.path
        overlay.close()
        self.device.overlay = Overlay.open(path, image_id=self.device.image.image_id)

    @invariant()
    def reads_as_the_model(self) -> None:
        assert read_views(self.device, 0, [self.device.size]) == self.model


DeviceMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
test_device_against_a_bytearray = DeviceMachine.TestCase


def test_a_device_without_an_overlay_is_read_only() -> None:
    device = ImageDevice(MergedImage([make_layer([], [], 2)]))
    assert device.read_only
    assert device.size == 8192
    device.prepare_flush()()
    with pytest.raises(AssertionError, match="read-only"):
        device.write(0, [memoryview(bytes(4096))])
    device.close()


def test_a_discard_of_less_than_a_block_changes_nothing(tmp_path: Path) -> None:
    device, content = make_device(tmp_path)
    assert not device.read_only
    device.discard(4096 + 512, 4096)
    assert read_views(device, 0, [device.size]) == content
    assert device.overlay is not None
    assert device.overlay.runs(0, BLOCKS) == ((0, BLOCKS, State.ABSENT),)
    device.close()


# --- over an image that is not here ---------------------------------------------------------------

RAW = make_image(4 * 65536, seed=2)
"""Chunks of 64 KiB: noise, text, repeated, zeros."""
RAW_HOLE = 3 * 65536
assert not any(RAW[RAW_HOLE:])


class Lacking:
    """A device whose index is here and whose pack is not."""

    def __init__(self, folder: Path) -> None:
        self.layer = StoredLayer(folder, RAW)
        self.layer.store(range(self.layer.pieces))
        manifest = Manifest(bytes(32), "a", 1, 0, len(RAW), (self.layer.ref,))
        stored = StoredImage(manifest, folder)
        self.image = stored.open()
        # The chunk table's page, too.
        read_views(ImageDevice(self.image), 0, [512])
        self.image._chunks._cache.clear()
        self.layer.have.drop(*range(self.layer.pieces))
        self.stored = stored
        overlay = Overlay.create(folder / "o", image_id=self.image.image_id, image_size=len(RAW))
        self.overlay = overlay
        self.device = ImageDevice(self.image, overlay)

    def supply(self, missing: Missing) -> None:
        for wanted in missing.ranges:
            self.stored.accept(wanted, self.layer.answer(wanted))


@pytest.fixture
def lacking(tmp_path: Path) -> Lacking:
    return Lacking(tmp_path)


@pytest.mark.parametrize(
    ("offset", "length", "chunks"),
    [
        (512, 512, 1),
        (0, 512, 1),
        (3584, 512, 1),
        (4096 - 512, 1024, 1),
        (65536 - 512, 1024, 2),
        (512, 65536, 2),
        (65536 - 4096, 4096 + 512, 1),
        (65536 - 512, 512 + 4096, 1),
    ],
)
@pytest.mark.parametrize("how", ["write", "write_zeroes"])
def test_blocks_changed_in_part_need_the_rest_and_nothing_is_done_before(
    lacking: Lacking, how: str, offset: int, length: int, chunks: int
) -> None:
    data = b"w" * length if how == "write" else bytes(length)

    def change() -> None:
        if how == "write":
            lacking.device.write(offset, [memoryview(data)])
        else:
            lacking.device.write_zeroes(offset, length, may_unmap=False)

    with pytest.raises(Missing) as caught:
        change()
    assert len(caught.value.ranges) == chunks
    assert list(lacking.overlay.runs(0, 64)) == [(0, 64, State.ABSENT)]
    lacking.supply(caught.value)
    change()
    expected = bytearray(RAW)
    expected[offset : offset + length] = data
    lacking.layer.have.add(range(lacking.layer.pieces))
    assert read_views(lacking.device, 0, [len(RAW)]) == expected


def test_whole_blocks_need_nothing(lacking: Lacking) -> None:
    lacking.device.write(4096, [memoryview(b"x" * 8192)])
    lacking.device.write_zeroes(3 * 4096, 4096, may_unmap=True)
    lacking.device.discard(4 * 4096, 4096)
    assert read_views(lacking.device, 4096, [4 * 4096]) == b"x" * 8192 + bytes(8192)
    # Nor do parts of blocks that were changed before.
    lacking.device.write(4096 + 512, [memoryview(b"y" * 512)])
    lacking.device.write_zeroes(3 * 4096 + 512, 512, may_unmap=False)
    assert read_views(lacking.device, 4096, [1024]) == b"x" * 512 + b"y" * 512
    assert lacking.layer.asked == []


def test_a_read_asks_for_all_that_lacks_at_once_and_for_each_range_once(lacking: Lacking) -> None:
    # Blocks of the overlay split what is one chunk below.
    lacking.device.write(4096, [memoryview(b"x" * 4096)])
    with pytest.raises(Missing) as caught:
        read_views(lacking.device, 0, [len(RAW)])
    ranges = caught.value.ranges
    assert len(ranges) == len(set(ranges)) == 3
    lacking.supply(caught.value)
    assert read_views(lacking.device, 0, [len(RAW)]) == RAW[:4096] + b"x" * 4096 + RAW[8192:]


def test_holes_of_image_and_overlay_are_told_without_a_fetch(lacking: Lacking) -> None:
    lacking.device.write(4096, [memoryview(b"x" * 4096)])
    lacking.device.discard(8192, 8192)
    told = list(lacking.device.extents(512, len(RAW) - 512))
    assert told == [(7680, False), (8192, True), (RAW_HOLE - 16384, False), (65536, True)]
    assert list(lacking.device.extents(RAW_HOLE + 512, 512)) == [(512, True)]
    assert lacking.layer.asked == []


def test_the_extents_of_a_scattered_device_are_cut_off() -> None:
    runs = [Run(2 * n, 1, 0) for n in range(1 << 14)]
    device = ImageDevice(MergedImage([make_layer(runs, [b"x" * 4096], 1 << 15)]))
    told = list(device.extents(0, device.size))
    assert told == [(4096, False), (4096, True)] * (1 << 13)
    # What the largest read covers is always told whole.
    assert sum(length for length, _ in device.extents(4096, 32 << 20)) == 32 << 20


def test_what_a_read_would_lack_is_told_without_reading(lacking: Lacking) -> None:
    device = lacking.device
    device.write(4096, [memoryview(b"x" * 4096)])
    device.require(4096, 4096)
    device.require(RAW_HOLE, 65536)
    with pytest.raises(Missing) as caught:
        device.require(0, len(RAW))
    assert len(caught.value.ranges) == 3
    lacking.supply(caught.value)
    device.require(0, len(RAW))
    assert device.image.chunks_touched == 1  # that of `Lacking` itself
    assert read_views(device, 0, [len(RAW)]) == RAW[:4096] + b"x" * 4096 + RAW[8192:]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500), st.integers(1, 12))
def test_reads_of_what_lacks_go_on_when_it_came(first: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lacking = Lacking(Path(folder))
        offset, length = first * 512, min(count * 5120, len(RAW) - first * 512)
        try:
            data = read_views(lacking.device, offset, [length])
        except Missing as missing:
            lacking.supply(missing)
            data = read_views(lacking.device, offset, [length])
        assert data == RAW[offset : offset + length]
        lacking.device.close()
