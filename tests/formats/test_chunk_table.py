"""Entries of chunk tables: their bytes, and what is refused."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import MAX_BLOCKS_PER_CHUNK
from p2pcloop.formats.chunk_table import (
    CHAINED,
    ENTRIES_PER_PAGE,
    ENTRY,
    FIRST_CODECS,
    MAX_STORED_SIZE,
    PAGE_SIZE,
    THIRD_CODECS,
    Chunk,
    ChunkPage,
    Codec,
    pack_chunks,
)
from p2pcloop.units import MAX_CHUNK_SIZE

PACK = 1 << 30
ID = bytes(range(32))


def entry(offset: int = 0, length: int = 1, blocks: int = 1, codec: int = 0) -> bytes:
    return struct.pack("<QIHBB32s", offset, length, blocks, codec, 0, ID)


def test_an_entry_byte_by_byte() -> None:
    chunk = Chunk(0x0102030405, 0x060708, 16, Codec.ZSTD, ID)
    data = pack_chunks([chunk])
    assert data == bytes.fromhex("0504030201000000 08070600 1000 02 00") + ID
    assert list(ChunkPage(data, pack_lengths=[1 << 40])) == [chunk]
    assert chunk.size == 65536
    assert (ENTRY.size, PAGE_SIZE) == (48, 48 * ENTRIES_PER_PAGE)


def test_the_codecs_have_these_numbers_for_ever() -> None:
    numbers = {"NONE": 0, "ZLIB": 1, "ZSTD": 2, "XZ": 3, "LZ4": 4, "LZO": 5}
    numbers |= {"CHAIN_START": 6, "CHAIN_NEXT": 7}
    numbers |= {"UNFILTERED_START": 8, "UNFILTERED_NEXT": 9}
    assert {codec.name: int(codec) for codec in Codec} == numbers
    assert set(map(int, FIRST_CODECS)) == {0, 1, 2}
    assert set(map(int, THIRD_CODECS)) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("codec", sorted(CHAINED))
def test_a_chunk_of_a_chain_lies_in_the_pack_of_its_layer(codec: Codec) -> None:
    data = pack_chunks([Chunk(0, 1, 1, codec, ID, source=1)])
    with pytest.raises(FormatError, match="another layer than its chain"):
        ChunkPage(data, pack_lengths=[1, 1])


@pytest.mark.parametrize("codec", sorted(CHAINED))
@pytest.mark.parametrize(("blocks", "most"), [(1, 5136), (MAX_BLOCKS_PER_CHUNK, 1053696)])
def test_a_chunk_of_a_chain_hardly_grows(codec: Codec, blocks: int, most: int) -> None:
    """Each that waits to be decoded takes as much memory as it has stored bytes."""
    assert ChunkPage(entry(0, most, blocks, codec), pack_lengths=[PACK])[0].length == most
    with pytest.raises(FormatError, match=f"{blocks} blocks in {most + 1} bytes"):
        ChunkPage(entry(0, most + 1, blocks, codec), pack_lengths=[PACK])


def test_entries_at_the_limits_are_taken() -> None:
    data = entry(PACK - 1) + entry(PACK - MAX_STORED_SIZE, MAX_STORED_SIZE, MAX_BLOCKS_PER_CHUNK, 2)
    first, second = ChunkPage(data, pack_lengths=[PACK])
    assert first.offset + first.length == second.offset + second.length == PACK
    assert second.size == MAX_CHUNK_SIZE


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (entry(codec=10), "codec 10"),
        (entry(codec=255), "codec 255"),
        (entry(length=0), "over the limits"),
        (entry(length=MAX_STORED_SIZE + 1), "over the limits"),
        (entry(length=0xFFFFFFFF), "over the limits"),
        (entry(blocks=0), "over the limits"),
        (entry(blocks=MAX_BLOCKS_PER_CHUNK + 1), "over the limits"),
        (entry(blocks=0xFFFF), "over the limits"),
        (entry(offset=PACK), "outside its pack"),
        (entry(offset=PACK - 1, length=2), "outside its pack"),
        (entry(offset=(1 << 64) - 1), "outside its pack"),
    ],
)
def test_lies_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        ChunkPage(entry() + data, pack_lengths=[PACK])


@pytest.mark.parametrize("codec", [Codec.XZ, Codec.LZ4, Codec.LZO])
def test_a_codec_that_the_version_does_not_have(codec: Codec) -> None:
    assert ChunkPage(entry(codec=codec), pack_lengths=[PACK])[0].codec is codec
    with pytest.raises(FormatError, match=f"codec {codec:d}, which an index of this version"):
        ChunkPage(entry(codec=codec), pack_lengths=[PACK], codecs=FIRST_CODECS)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=48, max_size=48))
def test_any_bytes_are_an_entry_inside_the_pack_or_an_error(data: bytes) -> None:
    try:
        (chunk,) = ChunkPage(data, pack_lengths=[PACK])
    except FormatError:
        return
    assert chunk.offset + chunk.length <= PACK
    assert chunk.size <= MAX_CHUNK_SIZE
