"""Chains: each chunk comes out after those before it, and wrong bytes are noticed."""

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, NeedsPackageError
from p2pcloop.formats import lzma_chain
from p2pcloop.formats.lzma_chain import MAX_CHAIN_CHUNKS, MAX_CHAIN_SIZE, ChainDecoder, ChainEncoder
from p2pcloop.units import MAX_CHUNK_SIZE

CALL = b"\xe8\x10\x00\x00\x00"
"""An x86 call, whose target the filter changes."""


def encode(contents: list[bytes]) -> list[bytes]:
    with closing(ChainEncoder()) as encoder:
        return [encoder.encode(content) for content in contents]


def decode(stored: list[bytes], contents: list[bytes]) -> Iterator[bytes]:
    decoder = ChainDecoder()
    for each, content in zip(stored, contents, strict=True):
        yield decoder.decode(each, len(content))


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([b"", CALL, noise(5000)]), st.binary(min_size=1, max_size=40)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 3),
)
def test_what_was_stored_comes_out_in_order(
    patterns: list[tuple[bytes, bytes]], blocks: int
) -> None:
    contents = [(b"".join(each) * blocks * 4096)[: blocks * 4096] for each in patterns]
    assert list(decode(encode(contents), contents)) == contents


def test_what_came_before_is_not_stored_again() -> None:
    first, other = noise(1 << 18) + CALL * 100, noise(4096, seed=2)
    stored = encode([first, other + first])
    assert len(stored[0]) > 1 << 18
    assert len(stored[1]) < 8192
    assert list(decode(stored, [first, other + first])) == [first, other + first]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=5), st.data())
def test_content_that_came_in_another_way_is_as_good_as_decoded(
    kinds: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """Of chunks without the filter; those with it may follow."""
    parts = [noise(8192), CALL * 1000 + bytes(3192), bytes(4096), noise(4096, seed=2) + CALL]
    contents = [(parts[kind], filtered) for kind, filtered in kinds]
    with closing(ChainEncoder()) as encoder:
        stored = [encoder.encode(content, filtered=each) for content, each in contents]
    most = next((at for at, (_, filtered) in enumerate(contents) if filtered), len(contents))
    skipped = data.draw(st.integers(0, most))
    decoder = ChainDecoder()
    for content, _ in contents[:skipped]:
        decoder.skip(content)
    for packed, (content, filtered) in list(zip(stored, contents, strict=True))[skipped:]:
        assert decoder.decode(packed, len(content), filtered=filtered) == content


def test_skipped_content_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lzma_chain, "MAX_CHAIN_SIZE", 8192)
    decoder = ChainDecoder()
    decoder.skip(bytes(8192))
    with pytest.raises(FormatError, match="longer than"):
        decoder.skip(bytes(4096))


def test_noise_grows_by_less_than_a_chunk_may() -> None:
    stored = encode([noise(MAX_CHUNK_SIZE), noise(MAX_CHUNK_SIZE, seed=2)])
    assert max(map(len, stored)) < MAX_CHUNK_SIZE + 1024


def test_a_chunk_depends_on_the_content_before_it_alone() -> None:
    """The same content, encoded in another way, leaves the decoder as the publisher's bytes do."""
    first, second = b"%07d\n" * 2048, b"%07d\nand more" * 2048
    stored = encode([first, second])
    plain = b"\1" + (len(first) - 1).to_bytes(2, "big") + first
    decoder = ChainDecoder()
    assert decoder.decode(plain, len(first)) == first
    assert decoder.decode(stored[1], len(second)) == second


@pytest.mark.parametrize("size", [4096, 12288, MAX_CHUNK_SIZE])
def test_another_size_than_stated_is_refused(size: int) -> None:
    (stored,) = encode([noise(100) * 82])
    with pytest.raises(FormatError, match="chain"):
        ChainDecoder().decode(stored, size)


def test_truncated_anywhere_is_refused() -> None:
    content = b"".join(b"%07d\n" % number for number in range(1024))
    (stored,) = encode([content])
    for length in range(len(stored)):
        with pytest.raises(FormatError, match="chain"):
            ChainDecoder().decode(stored[:length], len(content))


@pytest.mark.parametrize("more", [b"\0", b"garbage", b"\xff"])
def test_bytes_that_follow_are_refused(more: bytes) -> None:
    (stored,) = encode([noise(4096)])
    with pytest.raises(FormatError, match="chain"):
        ChainDecoder().decode(stored + more, 4096)


def test_a_bomb_makes_no_more_than_its_stated_size() -> None:
    """Neither by what its headers claim, nor in spite of what they claim."""
    stored = bytearray(encode([bytes(1 << 20)])[0])
    lying = bytes((stored[0] & 0xE0, 0x0F, 0xFF))
    for each in (stored, lying + stored[3:]):
        decoder = ChainDecoder()
        tracemalloc.start()
        try:
            with pytest.raises(FormatError, match="chain"):
                decoder.decode(bytes(each), 4096)
            assert tracemalloc.get_traced_memory()[1] < 1 << 16
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("least", [0x80, 0xA0])
def test_bytes_that_leave_the_state_open_are_refused(least: int) -> None:
    """Else the bytes before, and not their content, would decide what these mean: with 0x80 by the
    state, with 0xA0 by the properties."""
    first, second = b"%07d\n" * 2048, b"%07d\nand more" * 2048
    stored = encode([first, second])
    decoder = ChainDecoder()
    decoder.decode(stored[0], len(first))
    open_state = bytes([least | stored[1][0] & 0x1F]) + stored[1][1:5] + stored[1][6:]
    with pytest.raises(FormatError, match="chain"):
        decoder.decode(open_state, len(second))


@pytest.mark.parametrize("where", ["first of another chunk", "later in the first"])
def test_only_the_start_of_a_chain_resets_the_dictionary(where: str) -> None:
    """Else bytes of the right content would leave the decoder without the content before them, and
    the chunk after them would seem wrong."""
    first, second = noise(1 << 17), noise(32768, seed=2)
    stored = encode([first, second])
    decoder = ChainDecoder()
    if where == "first of another chunk":
        decoder.decode(stored[0], len(first))
        wrong, size = b"\1" + stored[1][1:], len(second)
    else:
        at = 3 + int.from_bytes(stored[0][1:3], "big") + 1
        assert stored[0][at] == 2
        wrong, size = stored[0][:at] + b"\1" + stored[0][at + 1 :], len(first)
    with pytest.raises(FormatError, match="drops the content before it"):
        decoder.decode(wrong, size)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=2, max_size=4))
def test_the_encoder_obeys(kinds: list[list[int]]) -> None:
    """Plain and compressed LZMA2 chunks in any mixture."""
    parts = [noise(16384), b"text" * 4096, CALL + bytes(16379)]
    contents = [b"".join(parts[kind] for kind in each) for each in kinds]
    assert list(decode(encode(contents), contents)) == contents


def test_a_chunk_of_many_pieces_is_refused() -> None:
    """To look at them takes longer than to decode what they hold."""
    content = noise(4096)
    for size, right in ((64, True), (63, False)):
        parts = [content[at : at + size] for at in range(0, 4096, size)]
        stored = b"".join(b"\2" + (len(part) - 1).to_bytes(2, "big") + part for part in parts)
        if right:
            assert ChainDecoder().decode(b"\1" + stored[1:], 4096) == content
        else:
            with pytest.raises(FormatError, match="chain"):
                ChainDecoder().decode(b"\1" + stored[1:], 4096)


@pytest.mark.parametrize(
    ("size", "most"),
    [(MAX_CHUNK_SIZE, MAX_CHAIN_SIZE // MAX_CHUNK_SIZE), (4096, MAX_CHAIN_CHUNKS)],
)
def test_a_chain_has_an_end(size: int, most: int) -> None:
    contents = [bytes(size)] * (most + 1)
    stored = encode(contents)
    decoded = decode(stored, contents)
    for content in contents[:-1]:
        assert next(decoded) == content
    with pytest.raises(FormatError, match="longer than"):
        next(decoded)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 8192))
def test_any_bytes_decode_to_the_size_or_are_refused(stored: bytes, size: int) -> None:
    decoder = ChainDecoder()
    for _ in range(2):
        try:
            assert len(decoder.decode(stored, size)) == size
        except FormatError:
            return


def test_without_its_library_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    lzma_chain._library.cache_clear()
    monkeypatch.setattr(lzma_chain, "_LIBRARY", "libnothing.so.9")
    with pytest.raises(NeedsPackageError, match="liblzma"):
        ChainEncoder()
