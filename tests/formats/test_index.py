"""Indexes: exact bytes, every byte covered by the layer's id, and no lie believed."""

import hashlib
import struct
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import Run
from p2pcloop.formats.chunk_table import ENTRIES_PER_PAGE, Chunk, Codec
from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.index import (
    FIXED,
    MAX_CHUNKS,
    MAX_HEADER_SIZE,
    MAX_RUNS,
    IndexHeader,
    build_index,
    header_length,
    open_index,
    read_header,
    read_map,
    read_page,
    zstd_bound,
)
from p2pcloop.image.build import index_cloop

DATA = Path(__file__).parent.parent / "data"
CLOOP = DATA / "v2.cloop"
GOLDEN = (DATA / "index-v1.bin").read_bytes()
LAYER_ID = "7597077dcdecfd58e6a532af5eed0920 41505d6efe31fedcf2d34608c4442c51"


def stored_map(header: IndexHeader, index: bytes) -> bytes:
    return index[header.length : header.length + header.map_length]


def page(header: IndexHeader, number: int, index: bytes) -> bytes:
    offset, length = header.page_extent(number)
    return index[offset : offset + length]


def verify(index: bytes, layer_id: bytes) -> tuple[list[Run], list[Chunk]]:
    """Read an index as a reader does who knows only the layer's id."""
    header = open_index(index)
    if header.layer_id != layer_id:
        raise FormatError("another layer")
    if hashlib.sha256(stored_map(header, index)).digest() != header.map_hash:
        raise FormatError("another map")
    chunks = []
    for number, digest in enumerate(header.page_hashes):
        data = page(header, number, index)
        if hashlib.sha256(data).digest() != digest:
            raise FormatError("another page")
        chunks += read_page(header, number, data)
    return list(read_map(header, stored_map(header, index))), chunks


def header_with(**changes: int | bytes) -> bytes:
    """The golden header with fields changed, as a hostile publisher would write it."""
    names = ("magic", "version", "length", "image", "pack", "chunks", "per_page", "runs", "map")
    values = dict(zip((*names, "map_hash"), FIXED.unpack_from(GOLDEN), strict=True)) | changes
    return FIXED.pack(*values.values()) + GOLDEN[FIXED.size : 112]


def test_the_golden_index_is_read() -> None:
    header = open_index(GOLDEN)
    assert header.layer_id == bytes.fromhex(LAYER_ID)
    assert (header.length, header.image_size, header.pack_length) == (112, 12288, 1910)
    assert (header.chunk_count, header.run_count, header.map_length) == (3, 1, 19)
    assert header.index_length == len(GOLDEN)
    runs, chunks = verify(GOLDEN, header.layer_id)
    assert runs == [Run(0, 3, 0, 0, 1)]
    with open_cloop(CLOOP) as cloop:
        for number, chunk in enumerate(chunks):
            assert (chunk.offset, chunk.length) == cloop.index.extent(number)
            assert (chunk.blocks, chunk.codec) == (1, Codec.ZLIB)
            assert hashlib.sha256(cloop.read_block(number)).digest() == chunk.id


def test_the_golden_index_is_written_byte_by_byte() -> None:
    """If this fails after an upgrade of zstandard, its map is packed to other bytes than before.

    Then everything is read as ever, but what is seeded again gets another layer id.
    """
    with open_cloop(CLOOP) as cloop:
        assert index_cloop(cloop, CLOOP.stat().st_size, lambda _done: None) == GOLDEN


def test_any_flipped_bit_is_noticed() -> None:
    layer_id = bytes.fromhex(LAYER_ID)
    for at in range(len(GOLDEN)):
        for bit in (0, at % 8, 7):
            damaged = bytearray(GOLDEN)
            damaged[at] ^= 1 << bit
            with pytest.raises(FormatError):
                verify(bytes(damaged), layer_id)


def test_cut_off_anywhere_is_noticed() -> None:
    for length in range(len(GOLDEN)):
        with pytest.raises(FormatError):
            verify(GOLDEN[:length], bytes.fromhex(LAYER_ID))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"P2PCIDX\1"}, "not the index"),
        ({"version": 0}, "version 0"),
        ({"version": 3}, "version 3; this program reads 1 to 2"),
        ({"length": 80}, "header length"),
        ({"length": 113}, "header length"),
        ({"length": 0xFFFFFFFF}, "header length"),
        ({"image": 0}, "image size"),
        ({"image": 12289}, "image size"),
        ({"image": (1 << 44) + 4096}, "image size"),
        ({"image": (1 << 64) - 4096}, "image size"),
        ({"pack": (1 << 44) + 1}, "pack length"),
        ({"chunks": 0}, "header length"),
        ({"chunks": ENTRIES_PER_PAGE + 1}, "header length"),
        ({"chunks": 0xFFFFFFFF}, "header length, chunk count"),
        ({"per_page": 0}, "entries per page"),
        ({"per_page": 255}, "entries per page"),
        ({"runs": MAX_RUNS + 1}, "run count"),
        ({"runs": 0xFFFFFFFF}, "run count"),
        ({"map": zstd_bound(16) + 1}, "map length"),
        ({"map": 0xFFFFFFFF}, "map length"),
    ],
)
def test_lies_in_the_header_are_refused(changes: dict[str, int | bytes], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_header(header_with(**changes))


@pytest.mark.parametrize("runs", [0, 2, MAX_RUNS])
def test_a_wrong_number_of_runs_is_refused(runs: int) -> None:
    with pytest.raises(FormatError):
        read_map(read_header(header_with(runs=runs)), stored_map(open_index(GOLDEN), GOLDEN))


def test_a_map_for_a_smaller_device_or_table_is_refused() -> None:
    stored = stored_map(open_index(GOLDEN), GOLDEN)
    with pytest.raises(FormatError, match="outside the device"):
        read_map(read_header(header_with(image=8192)), stored)
    with pytest.raises(FormatError, match="past the last chunk"):
        read_map(read_header(header_with(chunks=2)), stored)


def test_a_map_that_claims_a_monstrous_size_costs_no_memory() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(16))
    assert frame[4] == 0x20  # one byte of content size
    monster = frame[:4] + b"\xe0" + struct.pack("<Q", 1 << 60) + frame[6:]
    assert zstandard.frame_content_size(monster) == 1 << 60
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            read_map(read_header(header_with(map=len(monster))), monster)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_pages_of_another_length_are_refused() -> None:
    header = open_index(GOLDEN)
    data = page(header, 0, GOLDEN)
    for wrong in (b"", data[:-1], data[:-48], data + bytes(48)):
        with pytest.raises(FormatError, match="wrong length"):
            read_page(header, 0, wrong)
    short = read_header(header_with(pack=1909))
    with pytest.raises(FormatError, match="outside its pack"):
        read_page(short, 0, data)


@pytest.mark.parametrize("start", [b"", GOLDEN[:79], b"#!/bin/sh\n".ljust(80, b"\0")])
def test_what_is_no_header(start: bytes) -> None:
    for read in (header_length, read_header):
        with pytest.raises(FormatError, match="not the index"):
            read(start)


def test_how_long_a_header_is() -> None:
    assert header_length(GOLDEN[:80]) == 112
    for length in (0, 79, MAX_HEADER_SIZE + 1, 0xFFFFFFFF):
        with pytest.raises(FormatError, match="over the limit"):
            header_length(header_with(length=length))


def test_an_image_of_zeros_has_an_empty_index() -> None:
    index = build_index([], [], image_size=4096, pack_length=0)
    assert verify(index, open_index(index).layer_id) == ([], [])


@pytest.mark.parametrize("count", [1, ENTRIES_PER_PAGE, ENTRIES_PER_PAGE + 1, 600])
def test_the_table_is_cut_into_pages(count: int) -> None:
    chunks = [Chunk(n * 7, 7, 16, Codec.ZSTD, bytes([n % 251]) * 32) for n in range(count)]
    runs = [Run(0, count * 16, 0, 0, 16)]
    index = build_index(runs, chunks, image_size=count << 16, pack_length=count * 7)
    header = open_index(index)
    assert len(header.page_hashes) == -(-count // ENTRIES_PER_PAGE)
    assert header.index_length == len(index)
    assert verify(index, header.layer_id) == (runs, chunks)


def test_more_than_the_format_holds_is_not_written() -> None:
    chunk = Chunk(0, 1, 1, Codec.NONE, bytes(32))
    with pytest.raises(FormatError, match="over the limits"):
        build_index([], [chunk] * (MAX_CHUNKS + 1), image_size=4096, pack_length=1)
    with pytest.raises(FormatError, match="over the limits"):
        build_index([Run(0, 1, 0)] * (MAX_RUNS + 1), [chunk], image_size=4096, pack_length=1)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_header_or_an_error(data: bytes, begin_right: bool) -> None:
    data = GOLDEN[:16] + data if begin_right else data
    try:
        header = read_header(data)
    except FormatError:
        return
    assert header.length == len(data)
