"""Indexes: exact bytes, every byte covered by the layer's id, and no lie believed."""

import hashlib
import struct
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.block_map import ZERO_CHUNK, Run
from p2pcloop.formats.chunk_table import CHAINED, ENTRIES_PER_PAGE, Chunk, Codec
from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.index import (
    EXTENSION,
    FIXED,
    MAX_CHUNKS,
    MAX_HEADER_SIZE,
    MAX_RUNS,
    MAX_SOURCES,
    IndexHeader,
    build_index,
    header_length,
    open_index,
    read_header,
    read_map,
    read_page,
    zstd_bound,
)
from p2pcloop.formats.seal import Seal
from p2pcloop.making.build import index_cloop

DATA = Path(__file__).parent.parent / "data"
CLOOP = DATA / "v2.cloop"
GOLDEN = (DATA / "index-v1.bin").read_bytes()
LAYER_ID = "7597077dcdecfd58e6a532af5eed0920 41505d6efe31fedcf2d34608c4442c51"

SOURCES = (bytes([1]) * 32, bytes([2]) * 32)
SECRET, SALT = bytes(range(32)), bytes(range(100, 132))
RUNS = [Run(0, 2, ZERO_CHUNK, 0, 0), Run(5, 4, 0, 1, 2), Run(9, 1, 3, 0, 1)]
CHUNKS = [
    Chunk(0, 100, 2, Codec.ZSTD, bytes([10]) * 32),
    Chunk(7, 9000, 2, Codec.ZLIB, bytes([11]) * 32, source=2),
    Chunk(100, 28, 2, Codec.NONE, bytes([12]) * 32),
    Chunk(0, 50, 1, Codec.ZSTD, bytes([13]) * 32, source=1),
]
LENGTHS = (50, 9007)
"""Of the sources' packs."""

WITH_SOURCES = (DATA / "index-v2-sources.bin").read_bytes()
WITH_SOURCES_ID = "729f5b51f32661a32d9dedec146c9fc20e2522a72deaa843d930b6eb23a471bd"
SEALED = (DATA / "index-v2-sealed.bin").read_bytes()
SEALED_ID = "e24fe5b6d503c6405886eb711c9ba04458c55abdf805a204d59c637958fea20b"


def stored_map(header: IndexHeader, index: bytes) -> bytes:
    return index[header.length : header.length + header.map_length]


def page(header: IndexHeader, number: int, index: bytes) -> bytes:
    offset, length = header.page_extent(number)
    return index[offset : offset + length]


def verify(
    index: bytes,
    layer_id: bytes,
    source_lengths: Sequence[int] = (),
    seal: Seal | None = None,
) -> tuple[list[Run], list[Chunk]]:
    """Read an index as a reader does who knows only the layer's id."""
    header = open_index(index)
    if header.layer_id != layer_id:
        raise FormatError("another layer")
    if hashlib.sha256(stored_map(header, index)).digest() != header.map_hash:
        raise FormatError("another map")
    chunks: list[Chunk] = []
    for number, digest in enumerate(header.page_hashes):
        data = page(header, number, index)
        if hashlib.sha256(data).digest() != digest:
            raise FormatError("another page")
        chunks += read_page(header, number, data, source_lengths=source_lengths, seal=seal)
    return list(read_map(header, stored_map(header, index), seal=seal)), chunks


def build(seal: Seal | None = None) -> bytes:
    """The index of version 2 that the golden files hold."""
    return build_index(
        RUNS, CHUNKS, image_size=10 * 4096, pack_length=128, sources=SOURCES, seal=seal
    )


def sources_with(at: int, data: bytes) -> bytes:
    """The header of the golden index with sources, with bytes changed."""
    header = bytearray(WITH_SOURCES[: open_index(WITH_SOURCES).length])
    header[at : at + len(data)] = data
    return bytes(header)


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
        ({"version": 5}, "version 5; this program reads 1 to 4"),
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


# --- version 2: sources and sealing --------------------------------------------------------------


def test_golden_indexes_of_version_2_are_read() -> None:
    header = open_index(WITH_SOURCES)
    assert header.layer_id.hex() == WITH_SOURCES_ID
    assert (header.sources, header.salt) == (SOURCES, None)
    assert (header.length, header.index_length) == (80 + 40 + 64 + 32, len(WITH_SOURCES))
    assert verify(WITH_SOURCES, header.layer_id, LENGTHS) == (RUNS, CHUNKS)
    sealed = open_index(SEALED)
    assert sealed.layer_id.hex() == SEALED_ID
    assert (sealed.sources, sealed.salt) == (SOURCES, SALT)
    assert len(SEALED) == sealed.index_length == len(WITH_SOURCES) + 16 + 16
    assert verify(SEALED, sealed.layer_id, LENGTHS, Seal(SECRET, SALT)) == (RUNS, CHUNKS)


def test_golden_indexes_of_version_2_are_written_byte_by_byte() -> None:
    """See `test_the_golden_index_is_written_byte_by_byte`."""
    assert build() == WITH_SOURCES
    assert build(Seal(SECRET, SALT)) == SEALED


def test_version_1_is_written_where_it_says_all() -> None:
    index = build_index(RUNS[:1], [], image_size=8192, pack_length=0)
    assert FIXED.unpack_from(index)[1] == 1
    assert FIXED.unpack_from(WITH_SOURCES)[1] == FIXED.unpack_from(SEALED)[1] == 2


@pytest.mark.parametrize("codec", [Codec.XZ, Codec.LZ4, Codec.LZO])
def test_codecs_that_cloops_brought_make_version_3(codec: Codec) -> None:
    """A reader of versions 1 and 2 then refuses the header, before the first block is read."""
    chunks = [Chunk(0, 100, 1, codec, bytes(32))]
    index = build_index([Run(0, 1, 0, 0, 1)], chunks, image_size=4096, pack_length=100)
    header = open_index(index)
    assert (header.version, header.sources, header.salt) == (3, (), None)
    assert verify(index, header.layer_id)[1] == chunks


@pytest.mark.parametrize("codec", sorted(CHAINED))
def test_chains_make_version_4(codec: Codec) -> None:
    """A reader of versions 1 to 3 then refuses the header, before the first block is read."""
    chunks = [Chunk(0, 100, 1, codec, bytes(32)), Chunk(0, 100, 1, Codec.XZ, bytes(32))]
    index = build_index([Run(0, 1, 0, 0, 1)], chunks, image_size=4096, pack_length=100)
    header = open_index(index)
    assert (header.version, header.sources, header.salt) == (4, (), None)
    assert verify(index, header.layer_id)[1] == chunks


def test_a_chunk_of_a_chain_lies_in_no_source() -> None:
    chunk = Chunk(0, 1, 1, Codec.CHAIN_START, bytes(32), source=1)
    with pytest.raises(FormatError, match="another layer than its chain"):
        build_index([], [chunk], image_size=4096, pack_length=1, sources=SOURCES)


@pytest.mark.parametrize(("version", "codec"), [(2, Codec.XZ), (3, Codec.CHAIN_START)])
def test_a_page_with_a_codec_of_a_later_version_is_refused(version: int, codec: Codec) -> None:
    header = replace(open_index(WITH_SOURCES), version=version)
    data = bytearray(page(header, 0, WITH_SOURCES))
    data[14] = codec
    expected = f"codec {int(codec)}, which an index of this version cannot have"
    with pytest.raises(FormatError, match=expected):
        read_page(header, 0, bytes(data), source_lengths=LENGTHS)


@pytest.mark.parametrize("index", [WITH_SOURCES, SEALED], ids=["sources", "sealed"])
def test_any_flipped_bit_of_version_2_is_noticed(index: bytes) -> None:
    layer_id = open_index(index).layer_id
    seal = Seal(SECRET, SALT) if index is SEALED else None
    for at in range(len(index)):
        damaged = bytearray(index)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(FormatError):
            verify(bytes(damaged), layer_id, LENGTHS, seal)


def test_nothing_of_a_sealed_index_opens_with_another_key() -> None:
    header = open_index(SEALED)
    for seal in (Seal(SECRET[::-1], SALT), Seal(SECRET, SALT[::-1])):
        with pytest.raises(MismatchError, match="wrong key"):
            read_map(header, stored_map(header, SEALED), seal=seal)
        with pytest.raises(MismatchError, match="wrong key"):
            read_page(header, 0, page(header, 0, SEALED), source_lengths=LENGTHS, seal=seal)
    with pytest.raises(FormatError):
        read_map(header, stored_map(header, SEALED))


def test_a_sealed_index_shows_neither_map_nor_ids() -> None:
    for chunk in CHUNKS:
        assert chunk.id[:8] in WITH_SOURCES
        assert chunk.id[:8] not in SEALED


@pytest.mark.parametrize("count", [0, 1, 256, 257, 600])
def test_sealed_pages_are_where_the_header_says(count: int) -> None:
    chunks = [Chunk(n * 7, 7, 16, Codec.ZSTD, bytes([n % 251]) * 32) for n in range(count)]
    runs = [Run(0, count * 16, 0, 0, 16)] if count else []
    seal = Seal.new(SECRET)
    index = build_index(runs, chunks, image_size=1 << 26, pack_length=count * 7, seal=seal)
    header = open_index(index)
    assert header.index_length == len(index)
    again = Seal(SECRET, header.salt or b"")
    assert verify(index, header.layer_id, seal=again) == (runs, chunks)


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (FIXED.size, struct.pack("<I", 2), "flags"),
        (FIXED.size, struct.pack("<I", 1 << 31), "flags"),
        (FIXED.size + 4, struct.pack("<I", 0), "header length"),
        (FIXED.size + 4, struct.pack("<I", 3), "header length"),
        (FIXED.size + 4, struct.pack("<I", 4), "source count"),
        (FIXED.size + 4, struct.pack("<I", MAX_SOURCES + 1), "source count"),
        (FIXED.size + 4, struct.pack("<I", 0xFFFFFFFF), "source count"),
        (FIXED.size + 8, b"\1", "salt"),
        (FIXED.size + EXTENSION.size, SOURCES[1], "sources"),
        (8, struct.pack("<I", 1), "header length"),
    ],
)
def test_lies_in_what_version_2_adds_are_refused(at: int, data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_header(sources_with(at, data))


def test_a_header_of_version_2_that_ends_early() -> None:
    for length in range(FIXED.size, open_index(WITH_SOURCES).length):
        with pytest.raises(FormatError, match=r"header length|source count"):
            read_header(WITH_SOURCES[:length])


def test_chunks_in_sources_that_do_not_exist() -> None:
    with pytest.raises(FormatError, match="a source that the layer does not name"):
        build_index(RUNS, CHUNKS, image_size=1 << 20, pack_length=128, sources=SOURCES[:1])
    header = open_index(WITH_SOURCES)
    data = page(header, 0, WITH_SOURCES)
    with pytest.raises(FormatError, match="source 2 of a layer that has 1"):
        read_page(header, 0, data, source_lengths=LENGTHS[:1])
    for lengths in ((49, 9007), (50, 9006), (0, 0)):
        with pytest.raises(FormatError, match="outside its pack"):
            read_page(header, 0, data, source_lengths=lengths)


def test_a_source_is_named_once() -> None:
    with pytest.raises(FormatError, match="one source twice"):
        build_index([], [], image_size=4096, pack_length=0, sources=[SOURCES[0]] * 2)


def test_more_sources_than_the_format_holds_are_not_written() -> None:
    sources = [n.to_bytes(32, "big") for n in range(MAX_SOURCES + 1)]
    with pytest.raises(FormatError, match="256 sources is over the limits"):
        build_index([], [], image_size=4096, pack_length=0, sources=sources)
    index = build_index([], [], image_size=4096, pack_length=0, sources=sources[:-1])
    assert open_index(index).sources == tuple(sources[:-1])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from((b"", GOLDEN[:16], WITH_SOURCES[:16], SEALED[:90])))
def test_any_bytes_are_a_header_or_an_error(data: bytes, start: bytes) -> None:
    data = start + data
    try:
        header = read_header(data)
    except FormatError:
        return
    assert header.length == len(data)
