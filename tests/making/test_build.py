"""Indexes and packs of images: what is built reads as the source, byte by byte."""

import hashlib
import io
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, UsageError
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.cloop_compress import CODECS
from p2pcloop.formats.cloop_writer import CloopForm, stream_cloop, write_cloop
from p2pcloop.formats.codec import decode
from p2pcloop.formats.index import open_index, read_map, read_page
from p2pcloop.image import layer
from p2pcloop.image.content import LocalContent
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.build import (
    CHUNK_SIZE,
    can_stay,
    check_image_size,
    index_cloop,
    index_raw,
    pack_raw,
)
from p2pcloop.units import MAX_IMAGE_SIZE
from tests.support.cloops import build_v4
from tests.support.images import ignore, make_image, padded, read_views, write_cloop_file

Make = Callable[[Path, bytes], tuple[Path, bytes]]
"""Makes an image file: its pack and its index."""

SIZES = [1, 511, 512, 4095, 4096, 4097, 65536, 65537, (1 << 20) - 1, (3 << 20) + 12345]


def open_image(path: Path, index: bytes) -> ImageDevice:
    """The device of one layer whose pack is a local file."""
    return ImageDevice(MergedImage([Layer(LocalContent(path, index), open_index(index))]))


def in_place(path: Path, raw: bytes) -> tuple[Path, bytes]:
    path.write_bytes(raw)
    return path, index_raw(lambda at, length: raw[at : at + length], len(raw), ignore)


def packed(path: Path, raw: bytes) -> tuple[Path, bytes]:
    pack = io.BytesIO()
    index = pack_raw(lambda at, length: raw[at : at + length], len(raw), pack, ignore)
    path.write_bytes(pack.getvalue())
    return path, index


def as_cloop(path: Path, raw: bytes) -> tuple[Path, bytes]:
    write_cloop_file(path, raw, 16384)
    with open_cloop(path) as cloop:
        assert can_stay(cloop)
        return path, index_cloop(cloop, path.stat().st_size, ignore)


def as_cloop_v4(path: Path, raw: bytes) -> tuple[Path, bytes]:
    """Of xz, with its header last."""
    with path.open("wb") as file:
        stream_cloop(
            io.BytesIO(raw), len(raw), file, CloopForm(version=4, codec=Codec.XZ, block_size=16384)
        )
    with open_cloop(path) as cloop:
        return path, index_cloop(cloop, path.stat().st_size, ignore)


ways = pytest.mark.parametrize("make", [in_place, packed, as_cloop, as_cloop_v4])


@ways
@pytest.mark.parametrize("size", SIZES)
def test_an_image_of_any_size_reads_as_its_source(tmp_path: Path, make: Make, size: int) -> None:
    raw = make_image(size)
    device = open_image(*make(tmp_path / "pack", raw))
    expected = padded(raw, 16384 if make in (as_cloop, as_cloop_v4) else 4096)
    assert device.size == len(expected)
    assert read_views(device, 0, [device.size]) == expected
    device.close()


@ways
def test_reads_of_any_sectors_into_any_views(tmp_path: Path, make: Make) -> None:
    raw = make_image(700_000, seed=3)
    device = open_image(*make(tmp_path / "pack", raw))
    expected = padded(raw, 16384)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, device.size // 512), st.lists(st.integers(0, 90_000), max_size=6))
    def check(sector: int, lengths: list[int]) -> None:
        offset = sector * 512
        room = device.size - offset
        views = []
        for length in lengths:
            views.append(min(length, room))
            room -= views[-1]
        if views:
            views[-1] += -sum(views) % 512  # borders between views lie anywhere, the ends do not
        length = sum(views)
        assert read_views(device, offset, views) == expected[offset : offset + length]

    check()
    device.close()


@ways
def test_zeros_take_no_chunks(tmp_path: Path, make: Make) -> None:
    raw = bytes(1_000_000)
    path, index = make(tmp_path / "pack", raw)
    header = open_index(index)
    assert (header.chunk_count, header.run_count) == (0, 0)
    device = open_image(path, index)
    assert read_views(device, 512, [device.size - 512]) == bytes(device.size - 512)
    device.close()
    if make is packed:
        assert path.read_bytes() == b""


@ways
def test_equal_images_make_equal_layers(tmp_path: Path, make: Make) -> None:
    raw = make_image(3_000_000)
    first, second = make(tmp_path / "a", raw), make(tmp_path / "b", raw)
    assert first[1] == second[1]
    assert first[0].read_bytes() == second[0].read_bytes()


@pytest.mark.parametrize("codec", CODECS)
def test_the_chunks_of_a_cloop_v4_are_its_blocks(tmp_path: Path, codec: Codec) -> None:
    raw, path = make_image(200_000), tmp_path / "a.cloop"
    with path.open("wb") as file:
        write_cloop(
            io.BytesIO(raw), len(raw), file, CloopForm(version=4, codec=codec, block_size=4096)
        )
    with open_cloop(path) as cloop:
        index = index_cloop(cloop, path.stat().st_size, ignore)
        data = [cloop.read_block(block) for block in range(cloop.index.header.block_count)]
        places = {
            cloop.index.extent(block): (cloop.index.codec(block), block)
            for block in range(len(data))
        }
    header = open_index(index)
    assert header.version == (1 if codec is Codec.ZLIB else 3)
    chunks: list[Chunk] = []
    for page in range(len(header.page_hashes)):
        at, length = header.page_extent(page)
        chunks += read_page(header, page, index[at : at + length])
    assert codec in {chunk.codec for chunk in chunks}
    for chunk in chunks:
        stored_as, block = places[chunk.offset, chunk.length]
        assert (chunk.codec, chunk.id) == (stored_as, hashlib.sha256(data[block]).digest())
    device = open_image(path, index)
    assert read_views(device, 0, [device.size]) == padded(raw)
    device.close()


def test_equal_blocks_of_a_cloop_at_one_place_are_one_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.cloop"
    noise, zeros = hashlib.shake_256(b"n").digest(4096), bytes(4096)
    streams = [lzma.compress(noise), lzma.compress(zeros), lzma.compress(noise[::-1])]
    order = [0, 1, 2, 0, 0, 1, 2]
    data = build_v4([Codec.XZ] * 3, streams=streams, repeats=order, block_size=4096)
    path.write_bytes(data)
    with open_cloop(path) as cloop:
        index = index_cloop(cloop, len(data), ignore)
    assert open_index(index).chunk_count == 2
    device = open_image(path, index)
    blocks = [noise, zeros, noise[::-1]]
    assert read_views(device, 0, [device.size]) == b"".join(blocks[n] for n in order)
    device.close()


@pytest.mark.parametrize("step", [4096, 128 << 10])
def test_a_sequential_read_decodes_each_block_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    raw, path = hashlib.shake_256(b"noise").digest(40 * 65536), tmp_path / "a.cloop"
    raw = b"".join(raw[at : at + 32768] * 2 for at in range(0, len(raw), 65536))
    with path.open("wb") as file:
        write_cloop(io.BytesIO(raw), len(raw), file, CloopForm(version=4, codec=Codec.XZ))
    with open_cloop(path) as cloop:
        device = open_image(path, index_cloop(cloop, path.stat().st_size, ignore))
    decoded: Counter[bytes] = Counter()

    def count(codec: Codec, stored: bytes, size: int) -> bytes:
        decoded[stored] += 1
        return decode(codec, stored, size)

    monkeypatch.setattr(layer, "decode", count)
    for at in range(0, len(raw), step):
        assert read_views(device, at, [step]) == raw[at : at + step]
    device.close()
    assert len(decoded) == 40
    assert set(decoded.values()) == {1}


def test_equal_chunks_are_packed_once(tmp_path: Path) -> None:
    once = make_image(5 * CHUNK_SIZE, seed=2)
    path, index = packed(tmp_path / "one", once)
    twice_path, twice = packed(tmp_path / "two", once + once)
    assert open_index(twice).chunk_count == open_index(index).chunk_count
    assert path.read_bytes() == twice_path.read_bytes()
    device = open_image(twice_path, twice)
    assert read_views(device, 0, [device.size]) == once + once
    device.close()


def test_a_pack_is_no_larger_than_its_chunks() -> None:
    """What does not compress is stored plainly."""
    raw = hashlib.shake_256(b"noise").digest(2 * CHUNK_SIZE)
    pack = io.BytesIO()
    index = pack_raw(lambda at, length: raw[at : at + length], len(raw), pack, ignore)
    assert pack.getvalue() == raw
    assert index[-48 * 2 :][14] == Codec.NONE


def test_a_dense_image_is_one_run() -> None:
    raw = hashlib.shake_256(b"noise").digest(10 * CHUNK_SIZE + 5000)
    index = index_raw(lambda at, length: raw[at : at + length], len(raw), ignore)
    header = open_index(index)
    stored = index[header.length : header.length + header.map_length]
    (run,) = read_map(header, stored)
    assert (run.start, run.count, run.chunk, run.within, run.per_chunk) == (0, 162, 0, 0, 16)


@pytest.mark.parametrize("size", [0, -1, MAX_IMAGE_SIZE + 1])
def test_sizes_that_no_image_has(size: int) -> None:
    with pytest.raises(UsageError, match="1 to 2\\^44 bytes"):
        check_image_size(size)
    with pytest.raises(UsageError):
        index_raw(lambda _at, length: bytes(length), size, ignore)
    with pytest.raises(UsageError):
        pack_raw(lambda _at, length: bytes(length), size, io.BytesIO(), ignore)


def test_sizes_are_rounded_up_to_whole_blocks() -> None:
    assert [check_image_size(size) for size in (1, 4096, 4097)] == [4096, 4096, 8192]
    assert check_image_size(MAX_IMAGE_SIZE) == MAX_IMAGE_SIZE


@pytest.mark.parametrize("left", [0, 5000, 1 << 20, (1 << 20) + 1])
def test_an_image_that_shrinks_while_it_is_read_is_not_published(left: int) -> None:
    """Else its lost end would be published as zeros."""
    raw = make_image(3 << 20)[:left]
    with pytest.raises(FormatError, match="shorter"):
        index_raw(lambda at, length: raw[at : at + length], 3 << 20, ignore)
    with pytest.raises(FormatError, match="shorter"):
        pack_raw(lambda at, length: raw[at : at + length], 3 << 20, io.BytesIO(), ignore)


def test_a_damaged_cloop_is_not_published(tmp_path: Path) -> None:
    path = write_cloop_file(tmp_path / "a.cloop", make_image(400_000), 4096)
    with open_cloop(path) as cloop:
        offset, length = cloop.index.extent(50)
        damaged = bytearray(path.read_bytes())
        damaged[offset + length // 2] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="block 50: "):
            index_cloop(cloop, path.stat().st_size, ignore)


@pytest.mark.parametrize(("block_size", "stays"), [(4096, True), (512, False), (66048, False)])
def test_which_cloops_are_seeded_as_they_lie(tmp_path: Path, block_size: int, stays: bool) -> None:
    path = write_cloop_file(tmp_path / "a.cloop", make_image(100_000), block_size)
    with open_cloop(path) as cloop:
        assert can_stay(cloop) is stays


def test_progress_ends_at_the_size() -> None:
    told: list[int] = []
    raw = make_image((2 << 20) + 5)
    index_raw(lambda at, length: raw[at : at + length], len(raw), told.append)
    assert told == [1 << 20, 2 << 20, len(raw)]
