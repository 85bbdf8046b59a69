"""Decoded chunks: what is kept where, and what is decoded before it is asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from p2pcloop.errors import CorruptError
from p2pcloop.formats.block_map import Run
from p2pcloop.formats.index import open_index
from p2pcloop.image import chunks, decode_ahead
from p2pcloop.image.chunks import _ENTRY_SIZE, AHEAD_SIZE, DecodedChunks, chunk_key
from p2pcloop.image.layer import Layer
from p2pcloop.image.spill import SpillFile
from tests.support.chains import pack_chains
from tests.support.images import MemoryContent, make_layer

SIZE = 64 << 10
COUNT = 20
AHEAD = AHEAD_SIZE // SIZE


def content_of(number: int) -> bytes:
    return bytes([number + 1]) * SIZE


class Case:
    """Chunks of one layer; `decoded` tells which ones were read from the pack since last asked."""

    def __init__(
        self, spill: Path | None = None, *, cache_size: int = 2 * (SIZE + _ENTRY_SIZE)
    ) -> None:
        blocks = SIZE // 4096
        chunks = [content_of(number) for number in range(COUNT)]
        self.layer = make_layer([Run(0, COUNT * blocks, 0, 0, blocks)], chunks, COUNT * blocks)
        content = self.layer._content
        assert isinstance(content, MemoryContent)
        self.content = content
        file = None if spill is None else SpillFile(spill)
        self.chunks = DecodedChunks([self.layer], cache_size=cache_size, spill=file)
        self.chunks._ahead.workers = 0

    def decoded(self) -> list[int]:
        pack = self.layer.header.index_length
        reads = [(at - pack) // SIZE for at, _ in self.content.reads if at >= pack]
        self.content.reads.clear()
        return reads

    def read(self, number: int) -> None:
        part = self.chunks.part(number, 512, 1024)
        assert part is None or part == content_of(number)[:1024]
        assert part is not None or self.chunks.read(number) == content_of(number)


def touched(case: Case) -> set[int]:
    found = {number for number in range(COUNT) if case.chunks.touched(number)}
    assert case.chunks.count_touched() == len(found)
    return found


def test_what_is_decoded_again_goes_into_the_file(tmp_path: Path) -> None:
    case = Case(tmp_path)
    for number in (0, 5, 10, 15):
        case.read(number)
    assert case.decoded() == [0, 5, 10, 15]
    case.read(0)
    case.read(5)
    assert case.decoded() == [0, 5]
    for _ in range(3):
        for number in (0, 5, 10, 15):
            case.read(number)
    # Nor has memory been taken from what is decoded once.
    assert case.decoded() == []
    assert touched(case) == {0, 5, 10, 15}
    assert case.chunks.bytes_touched == 4 * SIZE
    case.chunks.close()


def test_without_a_file_memory_alone_keeps(tmp_path: Path) -> None:
    for case in (Case(), Case(tmp_path / "no such folder")):
        for _ in range(2):
            for number in (0, 5, 10):
                case.read(number)
        assert case.decoded() == [0, 5, 10] * 2
        case.chunks.close()


def test_who_reads_chunk_after_chunk_is_decoded_ahead_of() -> None:
    case = Case()
    case.chunks._ahead.workers = 1
    case.read(3)
    assert case.decoded() == [3]
    case.read(4)
    assert case.decoded() == [4, 5]
    assert touched(case) == {3, 4}
    case.read(5)
    assert case.decoded() == [6, 7]
    case.read(0)
    assert case.decoded() == [0]
    case.read(6)
    assert case.decoded() == [8, 9, 10]
    case.read(7)
    assert case.decoded() == list(range(11, 8 + AHEAD))
    case.read(8)
    assert case.decoded() == [8 + AHEAD]
    for number in range(9, COUNT):
        case.read(number)
    assert case.decoded() == list(range(9 + AHEAD, COUNT))
    case.chunks.close()


def test_several_readers_are_told_apart() -> None:
    case = Case()
    case.chunks._ahead.workers = 1
    case.read(0)
    case.read(10)
    case.read(1)
    case.read(11)
    assert case.decoded() == [0, 10, 1, 2, 11, 12]
    case.read(2)
    case.read(12)
    assert case.decoded() == [3, 4, 13, 14]
    case.chunks.close()


def test_several_chunks_at_once_are_started_together_one_is_not() -> None:
    case = Case(cache_size=COUNT * (SIZE + _ENTRY_SIZE))
    case.chunks._ahead.workers = 1
    case.chunks.read_ahead([7, 7])
    assert case.decoded() == []
    case.chunks.read_ahead([7, 2, 12])
    assert case.decoded() == [7, 2, 12]
    for number in (2, 7, 12):
        case.read(number)
    assert case.decoded() == []
    case.chunks.read_ahead([7, 2, 12])
    assert case.decoded() == []
    case.chunks.close()


def test_of_too_many_that_are_started_the_oldest_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each counts with its stored bytes, which here are as many as its content has."""
    monkeypatch.setattr(decode_ahead, "MAX_SIZE", 4 * SIZE)
    case = Case(cache_size=COUNT * (SIZE + _ENTRY_SIZE))
    case.chunks._ahead.workers = 1
    case.chunks.read_ahead([7, 2, 12])
    assert case.decoded() == [7, 2, 12]
    for number in (2, 7, 12):
        case.read(number)
    assert case.decoded() == [7]
    case.chunks.close()


def test_chunks_are_started_together_with_those_of_a_chain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "LEAST_SIZE", 1)
    index, pack = pack_chains([2])
    case = Case()
    layers = [Layer(MemoryContent(index + pack), open_index(index)), case.layer]
    decoded = DecodedChunks(layers, cache_size=1 << 20)
    decoded._ahead.workers = 1
    decoded.read_ahead([chunk_key(0, 0), chunk_key(1, 4), chunk_key(0, 1), chunk_key(1, 7)])
    assert case.decoded() == [4, 7]
    assert all(decoded.is_decoded(number) for number in (0, 1))
    decoded.close()


def test_one_processor_decodes_nothing_ahead() -> None:
    case = Case()
    case.chunks.read_ahead([1, 2, 3])
    case.read(0)
    case.read(1)
    assert case.decoded() == [0, 1]


def test_what_cannot_be_decoded_ahead_is_told_to_who_reads_it() -> None:
    case = Case()
    case.chunks._ahead.workers = 1
    case.content.data[case.layer.header.index_length + 6 * SIZE] ^= 1
    for number in range(6):
        case.read(number)
    with pytest.raises(CorruptError, match="a chunk"):
        case.chunks.read(6)
    with pytest.raises(CorruptError, match="a chunk"):
        case.chunks.read(6)
    case.read(7)
    assert touched(case) == {0, 1, 2, 3, 4, 5, 7}
    case.chunks.close()


class KeptDict:
    """Decoded chunks of an earlier boot."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {hashlib.sha256(content).digest(): content for content in contents}

    def __contains__(self, chunk_id: bytes) -> bool:
        return chunk_id in self.contents

    def read(self, chunk_id: bytes, size: int) -> bytes | None:
        content = self.contents.get(chunk_id)
        return content if content is not None and len(content) == size else None


def test_what_an_earlier_boot_has_kept_is_not_decoded() -> None:
    case = Case(cache_size=1 << 30)
    kept = case.layer._kept = KeptDict(*map(content_of, range(4)))
    case.chunks._ahead.workers = 1
    for number in range(3):
        case.read(number)
    case.chunks.read_ahead([chunk_key(0, 2), chunk_key(0, 3)])
    assert case.decoded() == []
    assert touched(case) == {0, 1, 2}
    assert case.chunks.bytes_touched == 3 * SIZE
    case.read(3)
    kept.contents.clear()
    for number in range(4):  # they are in memory
        case.read(number)
    assert case.decoded() == []
    case.read(7)
    assert case.decoded() == [7]
    contents = [bytes(content) for _, content in case.chunks.contents()]
    assert contents == [content_of(number) for number in (0, 1, 2, 3, 7)]
    assert all(hashlib.sha256(data).digest() == each for each, data in case.chunks.contents())
    case.chunks.close()


def test_kept_chunks_of_chains_are_read_without_those_before_them() -> None:
    index, pack = pack_chains([6])
    content = MemoryContent(index + pack)
    layer = Layer(content, open_index(index))
    contents = [layer.read_chunk(number) for number in range(6)]
    layer = Layer(content, open_index(index), kept=KeptDict(contents[4], contents[5]))
    chunks = DecodedChunks([layer], cache_size=1 << 30)
    layer.chunk(0)  # reads its page of the table
    content.reads.clear()
    chunks.arrived(chunk_key(0, 4))
    assert chunks.read(chunk_key(0, 5)) == contents[5]
    assert content.reads == []
    assert chunks.read(chunk_key(0, 3)) == contents[3]
    assert len(content.reads) == 4
    assert chunks.read(chunk_key(0, 4)) == contents[4]
    assert len(content.reads) == 4
    chunks.close()
