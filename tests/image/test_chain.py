"""Chunks of chains: read in any order, each decoded once, and all that is missing named at once."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import CorruptError, FormatError
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.index import open_index
from p2pcloop.formats.lzma_chain import ChainDecoder
from p2pcloop.image import chain, chunks
from p2pcloop.image import content as content_module
from p2pcloop.image import layer as layer_module
from p2pcloop.image.ahead import missing_chunks
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.chain import ChainAhead, OpenChains
from p2pcloop.image.content import StoredContent
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.layer import Elsewhere, Layer, nowhere
from p2pcloop.image.merged import MergedImage
from tests.support.chains import SIZE, content_of, pack_chains
from tests.support.images import MemoryContent, StoredLayer, read_views

GOLDEN = Path(__file__).parent.parent / "data" / "chains-v4.bin"


def test_the_golden_layer_is_read() -> None:
    """Made by `pack_chains([3, 2])`: liblzma of another version may make other bytes."""
    data = GOLDEN.read_bytes()
    header = open_index(data)
    assert header.version == 4
    assert (
        header.layer_id.hex() == "255f700b9d137e70070facd35cba317eba6df980b6a282f2cdd05684b747a6bd"
    )
    layer = Layer(MemoryContent(data), header)
    for number in (4, 0, 2, 3, 1):
        assert layer.read_chunk(number) == content_of(number)


def in_memory(lengths: list[int], damage: dict[int, Codec] | None = None) -> Layer:
    index, pack = pack_chains(lengths, damage)
    return Layer(MemoryContent(index + pack), open_index(index))


class Stored:
    """A layer of chains in a store, of which only the index is here.

    Attributes:
        ranges: of the chunks.
    """

    def __init__(self, folder: Path, lengths: list[int], elsewhere: Elsewhere = nowhere) -> None:
        index, pack = pack_chains(lengths)
        self.stored = StoredLayer.of(folder, index, pack, bytes(20))
        self.content = StoredContent(self.stored.directory, self.stored.ref)
        self.layer = self._open(index, elsewhere)
        count = sum(lengths)
        table = [self.layer.chunk(number) for number in range(count)]
        self.ranges = [ByteRange(bytes(20), len(index) + c.offset, c.length) for c in table]

    def _open(self, index: bytes, elsewhere: Elsewhere) -> Layer:
        header = open_index(index)
        for offset, length in (
            (header.length, header.map_length),
            *(header.page_extent(page) for page in range(len(header.page_hashes))),
        ):
            self.content.accept(
                ByteRange(bytes(20), offset, length), index[offset : offset + length]
            )
        return Layer(self.content, header, elsewhere=elsewhere)

    def bring(self, missing: Missing) -> list[ByteRange]:
        for wanted in missing.ranges:
            self.content.accept(wanted, self.stored.answer(wanted))
        return list(missing.ranges)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What all decoders made, in order."""
    made: list[bytes] = []

    class Counting(ChainDecoder):
        def decode(self, stored: bytes, size: int, *, filtered: bool = True) -> bytes:
            made.append(super().decode(stored, size, filtered=filtered))
            return made[-1]

    monkeypatch.setattr(chain, "ChainDecoder", Counting)
    return made


@pytest.fixture(params=["here", "ahead"], autouse=True)
def least_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks as small as those of these tests are decoded ahead, or by the reader."""
    if request.param == "ahead":
        monkeypatch.setattr(chunks, "LEAST_SIZE", 1)
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.integers(0, 11), max_size=20),
    st.sampled_from([0, SIZE, 1 << 20]),
)
def test_chunks_are_read_in_any_order(
    lengths: list[int], order: list[int], cache_size: int
) -> None:
    image = MergedImage([in_memory(lengths)], cache_size=cache_size)
    for number in (each % sum(lengths) for each in order):
        assert bytes(image.read_chunk(0, number)) == content_of(number)


def test_a_reader_in_order_decodes_each_chunk_once(decoded: list[bytes]) -> None:
    device = ImageDevice(MergedImage([in_memory([3, 2])], cache_size=SIZE))
    for block in range(10):
        assert (
            read_views(device, block * 4096, [4096])
            == content_of(block // 2)[block % 2 * 4096 :][:4096]
        )
    assert decoded == [content_of(number) for number in range(5)]


def test_what_a_jump_decodes_on_its_way_is_kept(decoded: list[bytes]) -> None:
    image = MergedImage([in_memory([4])])
    for number in (2, 1, 0, 3):
        assert bytes(image.read_chunk(0, number)) == content_of(number)
    assert sorted(decoded) == sorted(content_of(number) for number in range(4))
    assert image.bytes_touched == sum(image.layers[0].chunk(number).length for number in range(4))


@pytest.mark.parametrize("order", [[7, 3, 2, 6, 0, 5, 1, 4], [0, 1, 2, 3, 4, 5, 6, 7, 0, 4, 1, 5]])
def test_what_memory_drops_of_a_chain_goes_into_the_file(
    tmp_path: Path, decoded: list[bytes], order: list[int]
) -> None:
    """To decode it again would take all chunks before it."""
    image = MergedImage([in_memory([4, 4])], cache_size=SIZE, spill=tmp_path)
    device = ImageDevice(image)
    for number in order:
        assert read_views(device, number * SIZE, [SIZE]) == content_of(number)
    assert sorted(decoded) == sorted(content_of(number) for number in range(8))
    image.close()


def test_chains_that_are_read_in_any_order_are_decoded_twice_at_most(
    tmp_path: Path, decoded: list[bytes]
) -> None:
    """More of them than there are decoders: each jump ahead began one anew."""
    image = MergedImage([in_memory([16] * 6)], cache_size=SIZE, spill=tmp_path)
    device = ImageDevice(image)
    order = list(range(6 * 16))
    random.Random(1).shuffle(order)
    for number in order:
        assert read_views(device, number * SIZE, [SIZE]) == content_of(number)
    assert len(decoded) < 2 * len(order)
    image.close()


def test_a_jump_names_all_that_it_lacks_at_once(tmp_path: Path) -> None:
    stored = Stored(tmp_path, [2, 4])
    image = MergedImage([stored.layer])
    device = ImageDevice(image)
    for call in (lambda: device.require(4 * SIZE, 4096), lambda: read_views(device, 4 * SIZE, [1])):
        with pytest.raises(Missing) as caught:
            call()
        assert list(caught.value.ranges) == stored.ranges[2:5]
    stored.bring(caught.value)
    assert read_views(device, 4 * SIZE, [SIZE]) == content_of(4)
    assert read_views(device, 3 * SIZE, [SIZE]) == content_of(3)
    with pytest.raises(Missing) as caught:
        read_views(device, 5 * SIZE, [SIZE])
    assert list(caught.value.ranges) == stored.ranges[5:]


def test_readahead_brings_the_start_of_a_chain_first(tmp_path: Path) -> None:
    stored = Stored(tmp_path, [2, 4])
    image = MergedImage([stored.layer])
    found = missing_chunks(image, [(0, 4), (0, 5), (0, 0)])
    assert list(found) == [stored.ranges[number] for number in (2, 3, 4, 5, 0)]
    assert found[stored.ranges[3]] == (0, 3)


def test_a_jump_ends_although_not_all_of_its_chain_fits_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Stored(tmp_path, [6])
    image = MergedImage([stored.layer])
    size = sum(each.length for each in stored.ranges)
    monkeypatch.setattr(content_module, "ARRIVALS_LIMIT", size - 1)
    for _ in range(6):
        try:
            data = image.read_chunk(0, 5)
        except Missing as missing:
            stored.bring(missing)
        else:
            assert bytes(data) == content_of(5)
            return
    pytest.fail("the read is never answered")


@pytest.mark.parametrize("asked", [[4], [3, 4]])
def test_a_chunk_that_lies_elsewhere_is_fetched_for_those_after_it(
    tmp_path: Path, asked: list[int]
) -> None:
    """Its content is at hand, but a decoder takes its stored bytes."""
    held = hashlib.sha256(content_of(3)).digest()
    stored = Stored(tmp_path, [5], lambda chunk: content_of(3) if chunk.id == held else None)
    image = MergedImage([stored.layer])
    assert list(missing_chunks(image, [(0, each) for each in asked])) == stored.ranges
    assert missing_chunks(image, [(0, 3)]) == {}
    with pytest.raises(Missing) as caught:
        ImageDevice(image).require(asked[0] * SIZE, len(asked) * SIZE)
    assert list(caught.value.ranges) == stored.ranges


def test_what_many_chunks_of_a_chain_need_is_looked_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Stored(tmp_path, [9])
    looked: list[int] = []
    missing = StoredContent.missing

    def count(content: StoredContent, offset: int, length: int) -> ByteRange | None:
        looked.append(offset)
        return missing(content, offset, length)

    monkeypatch.setattr(StoredContent, "missing", count)
    with pytest.raises(Missing) as caught:
        ImageDevice(MergedImage([stored.layer])).require(0, 9 * SIZE)
    assert list(caught.value.ranges) == stored.ranges
    assert looked == [each.offset for each in stored.ranges]


def test_small_chunks_are_not_decoded_as_they_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert taken_ahead(tmp_path, monkeypatch, least=SIZE + 1, most=1 << 20) == []


def test_chunks_that_wait_count_with_their_stored_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Stored(tmp_path / "other", [1]).ranges[0].length
    assert taken_ahead(tmp_path, monkeypatch, least=1, most=SIZE + first) == [0]
    assert taken_ahead(tmp_path, monkeypatch, least=1, most=SIZE + first + 1) == [0, 1]


def taken_ahead(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, least: int, most: int
) -> list[int]:
    """The chunks of a chain of three that are decoded before they are read, once all are here."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(chunks, "LEAST_SIZE", least)
    monkeypatch.setattr(ChainAhead, "MAX_SIZE", most)
    stored = Stored(folder / str(most), [3])
    image = MergedImage([stored.layer])
    stored.bring(Missing(stored.ranges))
    image.arrived(0, 0)
    image.close()
    return [number for number in range(3) if stored.layer.missing_chunk(number)]


@pytest.mark.parametrize("most", [1, 2, 9])
def test_chunks_are_decoded_as_they_arrive(
    tmp_path: Path, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Some at most before they are read, in their order, and each once."""
    monkeypatch.setattr(chunks, "LEAST_SIZE", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(ChainAhead, "MAX_SIZE", most * SIZE)
    stored = Stored(tmp_path, [3, 2])
    image = MergedImage([stored.layer])
    for number in (0, 2, 1, 3, 4):
        stored.content.accept(stored.ranges[number], stored.stored.answer(stored.ranges[number]))
        image.arrived(0, number)
    taken = [number for number in range(5) if stored.layer.missing_chunk(number)]
    assert taken == list(range(min(most, 5)))
    device = ImageDevice(image)
    device.require(0, len(taken) * SIZE)
    assert read_views(device, 0, [5 * SIZE]) == b"".join(map(content_of, range(5)))
    assert decoded == [content_of(number) for number in range(5)]
    image.close()


def test_a_wrong_chunk_that_was_decoded_as_it_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "LEAST_SIZE", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    stored = Stored(tmp_path, [4])
    image = MergedImage([stored.layer])
    for number, wanted in enumerate(stored.ranges):
        data = stored.stored.answer(wanted)
        stored.content.accept(wanted, data if number != 1 else bytes(len(data)))
        image.arrived(0, number)
    healed = []
    while True:
        try:
            assert bytes(image.read_chunk(0, 3)) == content_of(3)
            break
        except Missing as missing:
            healed += [wanted for wanted in stored.bring(missing) if wanted.heal]
    assert healed == []
    assert bytes(image.read_chunk(0, 1)) == content_of(1)
    image.close()


def test_wrong_bytes_in_a_chain_are_asked_for_again(tmp_path: Path) -> None:
    stored = Stored(tmp_path, [4])
    for number, wanted in enumerate(stored.ranges):
        data = bytearray(stored.stored.answer(wanted))
        data[-1 if number == 1 else 0] ^= number in (1, 2)
        stored.content.accept(wanted, bytes(data))
    healed = []
    while True:
        try:
            assert stored.layer.read_chunk(3) == content_of(3)
            break
        except Missing as missing:
            healed += [wanted for wanted in stored.bring(missing) if wanted.heal]
    assert [wanted.offset for wanted in healed] == [stored.ranges[n].offset for n in (1, 2)]


def test_bytes_that_stay_wrong_are_an_error() -> None:
    layer = in_memory([3])
    content = layer._content
    assert isinstance(content, MemoryContent)
    content.data[layer.header.index_length + layer.chunk(1).offset + 8] ^= 1
    assert layer.read_chunk(0) == content_of(0)
    for number in (1, 2):
        with pytest.raises(CorruptError, match="a chunk"):
            layer.read_chunk(number)


@pytest.mark.parametrize("damage", [{0: Codec.CHAIN_NEXT}, {1: Codec.NONE}, {1: Codec.CHAIN_START}])
def test_a_chain_without_its_start(damage: dict[int, Codec]) -> None:
    layer = in_memory([3], damage)
    if damage == {1: Codec.CHAIN_START}:  # the table is right, and the chunks are not
        with pytest.raises(CorruptError):
            layer.read_chunk(2)
        return
    with pytest.raises(FormatError, match="no start"):
        layer.read_chunk(2)


@pytest.mark.parametrize(("limit", "most"), [("MAX_CHAIN_SIZE", 3 * SIZE), ("MAX_CHAIN_CHUNKS", 3)])
def test_a_chain_that_is_too_long(monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    """The chunk that starts it counts, too."""
    monkeypatch.setattr(layer_module, limit, most)
    assert in_memory([4]).read_chunk(2) == content_of(2)
    with pytest.raises(FormatError, match="too long"):
        in_memory([4]).read_chunk(3)


def test_few_decoders_are_kept(decoded: list[bytes]) -> None:
    """Those used last; the others begin anew."""
    layer = in_memory([2] * (OpenChains.LIMIT + 2))
    starts = range(0, layer.header.chunk_count, 2)
    for number in starts:
        layer.read_chunk(number)
    decoded.clear()
    layer.read_chunk(starts[-1] + 1)
    assert len(decoded) == 1
    layer.read_chunk(starts[0] + 1)
    assert len(decoded) == 3
