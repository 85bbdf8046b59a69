"""How chunks are stored: exactly the stated size comes out, or an error."""

import lzma
import tracemalloc
import zlib

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, NeedsPackageError
from p2pcloop.formats import lzo
from p2pcloop.formats.chunk_table import CHAINED, Codec
from p2pcloop.formats.codec import decode
from p2pcloop.formats.lzo import encode_lzo
from p2pcloop.units import MAX_CHUNK_SIZE

SIZE = 8192
CONTENT = b"".join(b"%07d\n" % n for n in range(SIZE // 8))


def store(codec: Codec, content: bytes) -> bytes:
    if codec is Codec.ZLIB:
        return zlib.compress(content)
    if codec is Codec.ZSTD:
        return zstandard.ZstdCompressor().compress(content)
    if codec is Codec.XZ:
        return lzma.compress(content, check=lzma.CHECK_CRC32)
    if codec is Codec.LZ4:
        stored: bytes = lz4.block.compress(content, store_size=False)
        return stored
    return encode_lzo(content) if codec is Codec.LZO else content


ALONE = [codec for codec in Codec if codec not in CHAINED]
COMPRESSED = [codec for codec in ALONE if codec is not Codec.NONE]


def claim(size: int) -> bytes:
    """A zstd frame (RFC 8878) of one raw block of one byte, whose header claims `size` bytes."""
    single_segment_with_8_byte_size = 0xE0
    header = (0xFD2FB528).to_bytes(4, "little") + bytes([single_segment_with_8_byte_size])
    return header + size.to_bytes(8, "little") + (1 | 1 << 3).to_bytes(3, "little") + b"x"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ALONE), st.integers(1, 4), st.binary(min_size=1, max_size=64))
def test_what_was_stored_comes_out(codec: Codec, blocks: int, pattern: bytes) -> None:
    content = (pattern * blocks * 4096)[: blocks * 4096]
    assert decode(codec, store(codec, content), blocks * 4096) == content


def test_plain_bytes_end_in_zeros() -> None:
    assert decode(Codec.NONE, b"abc", 8) == b"abc\0\0\0\0\0"
    with pytest.raises(FormatError, match="stored plainly in 9"):
        decode(Codec.NONE, bytes(9), 8)


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("size", [4096, 12288, MAX_CHUNK_SIZE])
def test_another_size_than_stated_is_refused(codec: Codec, size: int) -> None:
    with pytest.raises(FormatError):
        decode(codec, store(codec, CONTENT), size)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_truncated_anywhere_is_refused(codec: Codec) -> None:
    stored = store(codec, CONTENT)
    for length in {*range(40), *range(0, len(stored), 97), *range(len(stored) - 20, len(stored))}:
        with pytest.raises(FormatError):
            decode(codec, stored[:length], SIZE)


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("more", [b"\0", b"garbage", "again"])
def test_bytes_that_follow_are_refused(codec: Codec, more: bytes | str) -> None:
    stored = store(codec, CONTENT)
    with pytest.raises(FormatError):
        decode(codec, stored + (stored if isinstance(more, str) else more), SIZE)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_bomb_makes_no_more_than_its_stated_size(codec: Codec) -> None:
    bomb = store(codec, bytes(64 << 20))
    dictionary = 8 << 20 if codec is Codec.XZ else 0  # liblzma asks for it, and touches SIZE of it
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode(codec, bomb, SIZE)
        assert tracemalloc.get_traced_memory()[1] < dictionary + (1 << 20)
    finally:
        tracemalloc.stop()


def test_an_xz_stream_may_ask_for_as_much_memory_as_that_of_xz_9() -> None:
    assert decode(Codec.XZ, lzma.compress(CONTENT, preset=9), SIZE) == CONTENT
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 96 << 20}
    with pytest.raises(FormatError, match="Memory usage limit exceeded"):
        decode(Codec.XZ, lzma.compress(CONTENT, filters=[lzma2]), SIZE)


def test_without_liblzo_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lzo._library.cache_clear()
    monkeypatch.setattr(lzo, "_LIBRARY", "libnone.so.2")
    with pytest.raises(NeedsPackageError) as caught:
        decode(Codec.LZO, b"x", SIZE)
    assert caught.value.hint == "apt install liblzo2-2"


@pytest.mark.parametrize("size", [0, 2, SIZE + 1, 1 << 40, 1 << 60, (1 << 64) - 3])
def test_a_zstd_frame_that_claims_another_size_is_refused(size: int) -> None:
    """The library would allocate what is claimed: 2^60 bytes end it with MemoryError."""
    with pytest.raises(FormatError, match="does not state" if size > SIZE else "zstd"):
        decode(Codec.ZSTD, claim(size), SIZE)


def test_a_zstd_frame_that_states_its_size_and_holds_less_is_refused() -> None:
    assert decode(Codec.ZSTD, claim(1), 1) == b"x"
    with pytest.raises(FormatError):
        decode(Codec.ZSTD, claim(SIZE), SIZE)


def test_a_zstd_frame_that_does_not_state_its_size_is_refused() -> None:
    stored = zstandard.ZstdCompressor(write_content_size=False).compress(CONTENT)
    with pytest.raises(FormatError, match="does not state"):
        decode(Codec.ZSTD, stored, SIZE)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(Codec), st.binary(max_size=300), st.integers(1, 8192))
def test_any_bytes_are_of_the_size_or_an_error(codec: Codec, stored: bytes, size: int) -> None:
    try:
        assert len(decode(codec, stored, size)) == size
    except FormatError:
        return
