"""cloop V4.0, and those before V2.0: what is read, and that nothing damaged is read wrong."""

import random
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.cloop_compress import smallest_compressor
from p2pcloop.formats.cloop_index import (
    MAX_BLOCK_COUNT,
    CloopIndex,
    is_cloop,
    read_cloop_header,
)
from p2pcloop.formats.codec import decode
from tests.support.cloops import (
    FLAGS,
    SIZE,
    START,
    V4_CONTENT,
    V4_STREAMS,
    build_old,
    build_v4,
    preamble,
)

ALL = tuple(FLAGS)
CHECKED = (Codec.ZLIB, Codec.XZ)
"""Blocks of these have a checksum."""

BLOCKS = [random.Random(n).randbytes(200).ljust(SIZE, b"\0") for n in range(3)]
positions = pytest.mark.parametrize("header_last", [False, True], ids=["first", "last"])


def read_index(data: bytes) -> CloopIndex:
    """Read the index of `data`, insisting that only bytes inside it are asked for."""

    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(data)
        return data[offset : offset + length]

    return read_cloop_header(read, len(data))


def refusal(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        read_index(data)
    return str(caught.value)


def read_blocks(data: bytes) -> list[bytes | None]:
    """The content of each block; None where it is damaged."""
    index = read_index(data)
    blocks: list[bytes | None] = []
    for number in range(index.header.block_count):
        offset, length = index.extent(number)
        try:
            stored = data[offset : offset + length]
            blocks.append(decode(index.codec(number), stored, index.header.block_size))
        except FormatError:
            blocks.append(None)
    return blocks


def content(codecs: Sequence[Codec]) -> list[bytes]:
    return [V4_CONTENT[codec] for codec in codecs]


@positions
def test_blocks_of_all_codecs_in_one_file(tmp_path: Path, header_last: bool) -> None:
    data = build_v4(ALL, header_last=header_last)
    assert is_cloop(data[:128], data[-136:])
    path = tmp_path / "all.cloop"
    path.write_bytes(data)
    with open_cloop(path) as cloop:
        index = cloop.index
        assert (index.version, index.header_last, index.has_repeats) == ("V4.0", header_last, False)
        assert index.codecs() == dict.fromkeys(ALL, 1)
        assert [index.codec(block) for block in range(5)] == list(ALL)
        assert cloop.read(0, index.header.size) == b"".join(content(ALL))
        for outside in (-1, 5):
            with pytest.raises(IndexError):
                index.codec(outside)


@positions
@pytest.mark.parametrize("order", [[0, 0, 1, 2], [0, 1, 0, 2], [0, 1, 2, 2], [0, 1, 2, 1, 0, 0]])
def test_equal_blocks_may_lie_at_one_place(order: list[int], header_last: bool) -> None:
    codecs = (Codec.XZ, Codec.LZO, Codec.NONE)
    data = build_v4(codecs, repeats=order, header_last=header_last)
    assert read_index(data).has_repeats
    assert read_blocks(data) == [V4_CONTENT[codecs[number]] for number in order]


@positions
def test_every_truncation_is_found(header_last: bool) -> None:
    data = build_v4(ALL, header_last=header_last)
    for length in range(len(data)):
        refusal(data[:length])
        # What is cut off from the start of a file with its header last is missed, too.
        if header_last and length:
            refusal(data[length:])


@positions
@pytest.mark.parametrize("seed", range(2))
def test_random_flips_are_errors_or_right_data(header_last: bool, seed: int) -> None:
    """Of what has no checksum (plain, LZ4, LZO) the damaged block alone may read wrong."""
    data = build_v4(ALL, header_last=header_last)
    index = read_index(data)
    noise = random.Random(seed)
    for _ in range(500):
        place, bit = noise.randrange(len(data)), noise.randrange(8)
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        try:
            blocks = read_blocks(bytes(damaged))
        except FormatError:
            continue
        assert len(blocks) == len(ALL)
        for number, (block, codec) in enumerate(zip(blocks, ALL, strict=True)):
            start, length = index.extent(number)
            if codec in CHECKED or not start <= place < start + length:
                assert block in (None, V4_CONTENT[codec])
            else:
                assert block is None or len(block) == SIZE


def entries_of(codecs: Sequence[Codec], *, header_last: bool = False) -> list[int]:
    """The right entries of `build_v4`, to be made wrong."""
    index = read_index(build_v4(codecs, header_last=header_last))
    return [*index.entries, sum(index.extent(len(codecs) - 1))]


XZ_LZ4 = (Codec.XZ, Codec.LZ4)
XZ_FLAG, LZ4_FLAG = 2 << 60, 3 << 60


@positions
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Outside.
        ({1: LZ4_FLAG | (1 << 60) - 1}, "block 0 would take"),
        ({1: LZ4_FLAG | 1 << 40}, "block 0 would take"),
        # Backwards: into the block before, the header, the index, and to the other block.
        ({1: LZ4_FLAG | 1}, "block 1 points back to 1, where no block like it begins"),
        ({1: LZ4_FLAG | 5}, "block 1 points back to 5"),
        ({1: LZ4_FLAG | 0}, "block 1 points back to 0"),
        # One place, two codecs.
        ({1: ("same", LZ4_FLAG)}, "where no block like it begins"),
        # Compressors that there are not.
        ({1: ("right", 5 << 60)}, "block 1 of the cloop is of compressor 5, and V4.0 has 0 to 4"),
        ({0: ("right", 15 << 60)}, "block 0 of the cloop is of compressor 15"),
        # Plain blocks are of the block's size.
        ({1: ("right", 1 << 60)}, "block 1 is not compressed and has"),
    ],
)
def test_entries_that_are_refused(
    changes: dict[int, int | tuple[str, int]], message: str, header_last: bool
) -> None:
    entries = entries_of(XZ_LZ4, header_last=header_last)
    places = [entry & ((1 << 60) - 1) for entry in entries]
    for number, change in changes.items():
        if isinstance(change, tuple):
            where, flags = change
            entries[number] = flags | places[0 if where == "same" else number]
        else:
            entries[number] = change
    assert message in refusal(build_v4(XZ_LZ4, entries=entries, header_last=header_last))


def test_a_first_block_that_is_not_where_the_index_ends() -> None:
    """At the header, at the index, at the index's own entry, behind where it should be."""
    right = entries_of(XZ_LZ4)
    for place in (0, 100, 136, 144, (right[0] & 0xFFFF) - 1, (right[0] & 0xFFFF) + 1):
        wrong = [XZ_FLAG | place, *right[1:]]
        assert "does not begin where" in refusal(build_v4(XZ_LZ4, entries=wrong))


def test_an_index_at_the_end_that_holds_itself_or_the_header() -> None:
    *blocks, end = entries_of(XZ_LZ4, header_last=True)
    for wrong in (end - 1, end + 1, end + 24, end + 160, 0):
        data = build_v4(XZ_LZ4, entries=[*blocks, wrong], header_last=True)
        assert "does not end where its index begins" in refusal(data)


def test_a_huge_index_that_is_not_there_is_not_read() -> None:
    """`read_index` asserts that nothing outside is asked for."""
    for count in (3, 1000, MAX_BLOCK_COUNT):
        first = bytearray(build_v4(XZ_LZ4))
        first[132:136] = struct.pack(">I", count)
        assert "does not begin where" in refusal(bytes(first))
        last = bytearray(build_v4(XZ_LZ4, header_last=True))
        last[-4:] = struct.pack(">I", count)
        refusal(bytes(last))
    first[136:144] = struct.pack(">Q", XZ_FLAG | 136 + 8 * (MAX_BLOCK_COUNT + 1))
    assert "cut off in its index" in refusal(bytes(first))


@pytest.mark.parametrize("codec", [codec for codec in ALL if codec is not Codec.NONE])
@pytest.mark.parametrize("change", [-1, 1, SIZE, 60 * SIZE])
def test_a_block_of_another_size_than_the_header_says(
    tmp_path: Path, codec: Codec, change: int
) -> None:
    """Shorter, longer, twice as long, and a bomb: the others are read."""
    used, stored = smallest_compressor(codec, 9)(bytes(SIZE + change))
    assert used is codec
    path = tmp_path / "big.cloop"
    streams = [V4_STREAMS[Codec.XZ], stored, V4_STREAMS[Codec.LZ4]]
    path.write_bytes(build_v4((Codec.XZ, codec, Codec.LZ4), streams=streams))
    with open_cloop(path) as cloop:
        assert [cloop.read_block(n) for n in (0, 2)] == content(XZ_LZ4)
        with pytest.raises(FormatError, match=r"big\.cloop: block 1: "):
            cloop.read_block(1)


def test_padding_at_the_end_is_of_files_with_their_header_first() -> None:
    data = build_v4(ALL)
    padded = data + bytes(-len(data) % 512)
    assert len(padded) > len(data)
    assert read_blocks(padded) == content(ALL)
    assert "no padding" in refusal(data + b"x")
    refusal(build_v4(ALL, header_last=True) + bytes(512))


def test_blocks_may_begin_at_the_start_of_a_file_with_its_header_last() -> None:
    data = build_v4(ALL, header_last=True, start=b"")
    assert read_index(data).extent(0)[0] == 0
    assert read_blocks(data) == content(ALL)
    assert read_index(build_v4(ALL, header_last=True)).extent(0)[0] == len(START)


# --- the versions before V2.0, and V2.0 with its header last -------------------------------------


@pytest.mark.parametrize("version", ["V0.68", "V1.0"])
def test_old_versions(tmp_path: Path, version: str) -> None:
    path = tmp_path / "old.cloop"
    path.write_bytes(build_old(version, BLOCKS))
    assert is_cloop(path.read_bytes()[:128])
    with open_cloop(path) as cloop:
        assert (cloop.index.version, cloop.index.codecs()) == (version, {Codec.ZLIB: 3})
        assert cloop.read(0, cloop.index.header.size) == b"".join(BLOCKS)


@pytest.mark.parametrize("version", ["V0.68", "V1.0"])
def test_every_truncation_and_flip_of_old_versions(version: str) -> None:
    data = build_old(version, BLOCKS)
    for length in range(len(data)):
        refusal(data[:length])
    for place in range(128, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        try:
            blocks = read_blocks(bytes(damaged))
        except FormatError:
            continue
        assert all(block in (None, right) for block, right in zip(blocks, BLOCKS, strict=True))


def test_v2_with_its_header_last() -> None:
    stored = [zlib.compress(block) for block in BLOCKS]
    places = [7, 7 + len(stored[0]), 7 + len(stored[0] + stored[1]), 7 + len(b"".join(stored))]
    header = preamble("V2.0") + struct.pack(">II", SIZE, 3)
    data = b"x" * 7 + b"".join(stored) + struct.pack(">4Q", *places) + header
    index = read_index(data)
    assert (index.version, index.header_last) == ("V2.0", True)
    assert read_blocks(data) == BLOCKS
    flagged = [places[0], XZ_FLAG | places[1], *places[2:]]
    refusal(data.replace(struct.pack(">4Q", *places), struct.pack(">4Q", *flagged)))


@pytest.mark.parametrize("build", [lambda: build_old("V1.0", BLOCKS), lambda: build_v4(ALL)])
def test_a_version_is_not_taken_for_another(build: Callable[[], bytes]) -> None:
    data = build()
    for other in (b"V1.0", b"V2.0", b"V4.0", b"V3.0"):
        if data[11:15] != other:
            refusal(data[:11] + other + data[15:])
