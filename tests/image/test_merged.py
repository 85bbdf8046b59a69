"""The merged image: layers over each other, verified chunks, a bounded memory."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import CorruptError, FormatError
from p2pcloop.formats.block_map import ZERO_CHUNK, Run
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.index import build_index, open_index
from p2pcloop.formats.manifest import compute_image_id
from p2pcloop.image.chunks import _ENTRY_SIZE
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import MergedImage
from tests.support.images import MemoryContent, make_layer, read_views

BLOCKS = 24


def blocks_of(*fills: int) -> bytes:
    return b"".join(bytes([fill]) * 4096 for fill in fills)


@st.composite
def layers_and_model(draw: st.DrawFn) -> tuple[list[Layer], bytes]:
    """Random layers and, painted block by block, what they read as."""
    model = bytearray(BLOCKS * 4096)
    layers = []
    noise = random.Random(draw(st.integers(0, 1 << 16)))
    for _ in range(draw(st.integers(1, 4))):
        per_chunk = draw(st.integers(1, 4))
        chunks = [noise.randbytes(per_chunk) * 4096 for _ in range(draw(st.integers(1, 6)))]
        content = b"".join(chunks)
        runs, block = [], draw(st.integers(0, 4))
        while block < BLOCKS:
            count = draw(st.integers(1, 8))
            first = draw(st.integers(0, len(content) // 4096 - 1))
            count = min(count, BLOCKS - block, len(content) // 4096 - first)
            if draw(st.integers(0, 3)) == 0:
                runs.append(Run(block, count, ZERO_CHUNK, 0, 0))
                model[block * 4096 : (block + count) * 4096] = bytes(count * 4096)
            else:
                chunk, within = divmod(first, per_chunk)
                runs.append(Run(block, count, chunk, within, per_chunk))
                part = content[first * 4096 : (first + count) * 4096]
                model[block * 4096 : (block + count) * 4096] = part
            block += count + draw(st.integers(0, 4))
        layers.append(make_layer(runs, chunks, BLOCKS))
    return layers, bytes(model)


@settings(max_examples=100, deadline=None)
@given(layers_and_model(), st.data())
def test_layers_read_as_painted_over_each_other(
    case: tuple[list[Layer], bytes], data: st.DataObject
) -> None:
    layers, model = case
    device = ImageDevice(MergedImage(layers))
    assert read_views(device, 0, [device.size]) == model
    first = data.draw(st.integers(0, BLOCKS * 8 - 1))
    last = data.draw(st.integers(first + 1, BLOCKS * 8))
    middle = data.draw(st.integers(0, (last - first) * 512))
    views = [middle, (last - first) * 512 - middle]
    assert read_views(device, first * 512, views) == model[first * 512 : last * 512]


def test_what_an_image_is_called() -> None:
    layers = [make_layer([Run(0, 1, 0)], [blocks_of(fill)], 1) for fill in (1, 2)]
    image = MergedImage(layers)
    ids = [layer.header.layer_id for layer in layers]
    assert image.image_id == compute_image_id(4096, ids)
    assert ImageDevice(image).serial == image.image_id.hex()[:20].encode()


def test_the_top_layer_gives_the_size() -> None:
    """An image may grow, and shrink, from one version to the next."""

    def base() -> Layer:
        return make_layer([Run(0, 4, 0, 0, 4)], [blocks_of(1, 2, 3, 4)], 4)

    larger = ImageDevice(MergedImage([base(), make_layer([Run(5, 1, 0)], [blocks_of(9)], 6)]))
    assert read_views(larger, 0, [6 * 4096]) == blocks_of(1, 2, 3, 4, 0, 9)
    smaller = ImageDevice(MergedImage([base(), make_layer([], [], 2)]))
    assert read_views(smaller, 0, [smaller.size]) == blocks_of(1, 2)


def test_memory_of_decoded_chunks_is_bounded_least_recently_used_first() -> None:
    layer = make_layer([Run(0, 10, 0)], [blocks_of(n + 1) for n in range(10)], 10)
    content = layer._content
    assert isinstance(content, MemoryContent)
    image = MergedImage([layer], cache_size=3 * (4096 + _ENTRY_SIZE))
    device = ImageDevice(image)

    def decoded(block: int) -> bool:
        """Whether a read of this block had to decode its chunk."""
        content.reads.clear()
        assert read_views(device, block * 4096, [4096]) == blocks_of(block + 1)
        return content.reads != []

    assert [decoded(block) for block in (0, 1, 2, 0)] == [True, True, True, False]
    assert decoded(3)
    assert image._chunks._cached == 3 * (4096 + _ENTRY_SIZE)
    # 1 was used longest ago; 0 had been used again.
    assert [decoded(block) for block in (0, 2, 3, 1)] == [False, False, False, True]
    assert read_views(device, 0, [10 * 4096]) == blocks_of(*range(1, 11))
    assert sum(map(len, image._chunks._cache.values())) == 3 * 4096
    assert image._chunks._cached == 3 * (4096 + _ENTRY_SIZE)
    assert (image.chunks_touched, image.bytes_touched) == (10, 10 * 4096)


def test_a_cache_smaller_than_a_chunk_keeps_the_last_one() -> None:
    layer = make_layer([Run(0, 2, 0)], [blocks_of(1), blocks_of(2)], 2)
    image = MergedImage([layer], cache_size=0)
    device = ImageDevice(image)
    assert read_views(device, 0, [8192]) == blocks_of(1, 2)
    assert len(image._chunks._cache) == 1


def test_the_chunk_table_is_read_by_the_page_and_once() -> None:
    chunks = [n.to_bytes(2, "little") * 2048 for n in range(600)]
    layer = make_layer([Run(0, 600, 0)], chunks, 600)
    content = layer._content
    assert isinstance(content, MemoryContent)
    content.reads.clear()
    device = ImageDevice(MergedImage([layer]))
    assert read_views(device, 300 * 4096, [2 * 4096]) == chunks[300] + chunks[301]
    page = layer.header.page_extent(1)
    pack = layer.header.index_length
    assert content.reads == [page, (pack + 300 * 4096, 4096), (pack + 301 * 4096, 4096)]
    assert layer.chunk(599).offset == 599 * 4096


def test_a_chunk_shorter_than_the_map_says_is_an_error() -> None:
    """The map says two blocks a chunk; the table says that it has one."""
    layer = make_layer([Run(0, 2, 0, 0, 2)], [blocks_of(1)], 2)
    device = ImageDevice(MergedImage([layer]))
    assert read_views(device, 0, [4096]) == blocks_of(1)
    for offset, length in ((0, 8192), (4096, 512), (3584, 1024)):
        with pytest.raises(FormatError, match="a block that its chunk lacks"):
            read_views(device, offset, [length])


@pytest.mark.parametrize("codec", Codec)
def test_bytes_that_are_not_the_chunk_are_never_given_out(codec: Codec) -> None:
    """Whether they decode to something else or not at all."""
    for stored in (bytes(4096), b"\1" * 4096, b"", b"garbage", bytes(5000)):
        chunk = Chunk(0, max(1, len(stored)), 1, codec, hashlib.sha256(blocks_of(7)).digest())
        index = build_index([Run(0, 1, 0)], [chunk], image_size=4096, pack_length=chunk.length)
        layer = Layer(MemoryContent(index + stored), open_index(index))
        device = ImageDevice(MergedImage([layer]))
        without_start = chunk.follows  # which the table says, and the reader sees
        with pytest.raises(
            FormatError if without_start else CorruptError, match=r"a chain|a chunk"
        ):
            read_views(device, 0, [4096])


def test_a_damaged_page_or_map_is_rejected() -> None:
    layer = make_layer([Run(0, 1, 0)], [blocks_of(1)], 1)
    content = layer._content
    assert isinstance(content, MemoryContent)
    header = layer.header
    content.data[header.page_extent(0)[0] + 20] ^= 1
    with pytest.raises(CorruptError, match="a page of a chunk table"):
        layer.chunk(0)
    content.data[header.length] ^= 1
    with pytest.raises(CorruptError, match="the map of a layer"):
        Layer(content, header)


def test_closing_closes_every_layer() -> None:
    layers = [make_layer([Run(0, 1, 0)], [blocks_of(fill)], 1) for fill in (1, 2)]
    MergedImage(layers).close()
    for layer in layers:
        assert isinstance(layer._content, MemoryContent)
        assert layer._content.closed


def test_nothing_read_asks_for_nothing() -> None:
    layer = make_layer([Run(0, 1, 0)], [blocks_of(1)], 1)
    content = layer._content
    assert isinstance(content, MemoryContent)
    content.reads.clear()
    device = ImageDevice(MergedImage([layer]))
    assert read_views(device, 512, []) == read_views(device, 4096, [0, 0]) == b""
    assert content.reads == []


def test_a_block_reads_the_same_once_its_chunk_is_decoded() -> None:
    """The short way for small reads of decoded chunks, at the borders of chunks, runs and holes."""
    base = make_layer([Run(0, 4, 0, 0, 4)], [blocks_of(1, 2, 3, 4)], 8)
    top = make_layer([Run(2, 3, 0, 0, 2)], [blocks_of(5, 6), blocks_of(7, 8)], 8)
    device = ImageDevice(MergedImage([base, top]))
    model = blocks_of(1, 2, 5, 6, 7, 0, 0, 0)
    for _ in range(2):
        for first in range(8):
            for count in range(1, 9 - first):
                data = read_views(device, first * 4096, [count * 4096])
                assert data == model[first * 4096 : (first + count) * 4096]


def test_a_map_that_names_what_a_decoded_chunk_lacks_is_still_an_error() -> None:
    device = ImageDevice(MergedImage([make_layer([Run(0, 4, 0, 0, 4)], [blocks_of(1, 2)], 4)]))
    assert read_views(device, 0, [8192]) == blocks_of(1, 2)
    with pytest.raises(FormatError):
        read_views(device, 4096, [8192])
    with pytest.raises(FormatError):
        read_views(device, 8192, [4096])


def test_whole_chunks_are_found_as_they_are_stored() -> None:
    """Where the map shows all of a chunk and nothing else, in the codec that is asked for."""
    chunks = [blocks_of(1, 2), blocks_of(3, 4), blocks_of(5, 6)]
    runs = [Run(0, 4, 0, 0, 2), Run(4, 1, 2, 0, 2), Run(5, 1, ZERO_CHUNK, 0, 0), Run(6, 2, 2, 0, 2)]
    image = MergedImage([make_layer(runs, chunks, 8), make_layer([Run(2, 1, 0, 1, 2)], chunks, 8)])

    def found(first: int, count: int, codec: Codec = Codec.NONE) -> bytes | None:
        whole = image.whole_chunk(first, count, codec)
        return None if whole is None else whole[2]

    assert found(0, 2) == chunks[0]
    assert found(6, 2) == chunks[2]
    assert found(0, 2, Codec.ZLIB) is None
    for first, count in [(0, 1), (1, 1), (2, 2), (3, 1), (4, 1), (4, 2), (5, 1), (0, 4), (0, 8)]:
        assert found(first, count) is None, (first, count)
    image.close()
