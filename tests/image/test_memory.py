"""What a reader keeps does not grow with what a publisher claims, nor with how long it reads."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.block_map import Run
from p2pcloop.formats.chunk_table import (
    ENTRIES_PER_PAGE,
    PAGE_SIZE,
    Chunk,
    ChunkPage,
    Codec,
    pack_chunks,
)
from p2pcloop.formats.manifest import Manifest
from p2pcloop.image import spill, stored
from p2pcloop.image.bits import Bits
from p2pcloop.image.layer import Layer, PageCache
from p2pcloop.image.spill import SpillFile
from p2pcloop.image.stored import StoredImage
from p2pcloopd.block.waits import MAX_SAMPLES, Waits
from tests.support.images import MemoryContent, StoredLayer, make_image, make_layer


def test_an_entry_of_a_table_takes_what_it_takes_in_the_file() -> None:
    chunks = [Chunk(n, 1, 1, Codec.NONE, bytes(32)) for n in range(ENTRIES_PER_PAGE)]
    data = pack_chunks(chunks)
    tracemalloc.start()
    try:
        pages = [ChunkPage(bytes(bytearray(data)), pack_lengths=[1 << 40]) for _ in range(64)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 64 * (PAGE_SIZE + 200)
    assert list(pages[0]) == chunks
    assert pages[0][-2:] == chunks[-2:]
    assert pages[0][-1] == chunks[-1]
    with pytest.raises(IndexError):
        pages[0][ENTRIES_PER_PAGE]


def test_pages_that_were_not_used_for_longest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageCache, "LIMIT", 2)
    one = bytes(4096)
    layer = make_layer([Run(0, 1000, 0)], [one] * 1000, 1000)
    content = layer._content
    assert isinstance(content, MemoryContent)

    def read_pages(*pages: int) -> int:
        content.reads.clear()
        for page in pages:
            assert layer.chunk(page * ENTRIES_PER_PAGE).offset == page * ENTRIES_PER_PAGE * 4096
        return len(content.reads)

    assert read_pages(0, 1, 0, 1) == 2
    assert read_pages(0, 2, 0) == 1  # 1 goes, not 0
    assert read_pages(1) == 1


def test_the_pages_of_all_layers_are_bounded_together() -> None:
    pages = PageCache()
    layers = [make_layer([Run(0, 1, 0)], [bytes([n]) * 4096], 1) for n in range(3)]
    again = [Layer(layer._content, layer.header, pages=pages) for layer in layers]
    assert [layer.chunk(0).id for layer in again] == [layer.chunk(0).id for layer in layers]
    assert len(pages._pages) == 3


def test_headers_of_all_layers_are_bounded_together_and_none_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [StoredLayer(tmp_path, make_image(65536, seed=n), bytes([n]) * 20) for n in (1, 2)]
    size = sum(layer.ref.header_length for layer in layers)
    monkeypatch.setattr(stored, "MAX_HEADERS_SIZE", size - 1)
    refs = [layer.ref for layer in layers]
    image = StoredImage(Manifest(bytes(32), "a", 1, 0, 65536, tuple(refs)), tmp_path)
    with pytest.raises(FormatError, match=f"{size} bytes in all"):
        image.open()
    image.close()


def test_what_is_noted_of_spilled_chunks_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "MAX_PLACES", 3)
    file = SpillFile(tmp_path, 100 * 4096)
    for key in range(10):
        assert file.put(key, memoryview(bytes([key]) * 4096))
    assert [key for key in range(10) if key in file] == [7, 8, 9]
    assert bytes(file.read(8, 0, 4096) or b"") == bytes([8]) * 4096
    file.close()


@given(
    st.integers(1, 100).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1))))
)
def test_bits_are_a_set(case: tuple[int, list[int]]) -> None:
    limit, numbers = case
    bits, seen = Bits(limit), set[int]()
    for number in numbers:
        assert bits.add(number) == (number not in seen)
        seen.add(number)
    assert {number for number in range(-9, limit + 9) if number in bits} == seen
    assert bits.count == len(seen)
    text = "".join(f"{byte:08b}" for byte in bits.to_bytes())
    assert text == "".join("1" if n in seen else "0" for n in range(-(-limit // 8) * 8))


def test_waits_are_summed_up() -> None:
    waits = Waits()
    assert waits.report() == {"count": 0}
    for n in range(100):
        waits.add((100 - n) / 1000)
    assert waits.report() == {"count": 100, "p50_ms": 51, "p99_ms": 100, "max_ms": 100}
    for n in range(10 * MAX_SAMPLES):
        waits.add(n % 1000 / 1000)
    assert len(waits._samples) < MAX_SAMPLES
    report = waits.report()
    assert report["count"] == 100 + 10 * MAX_SAMPLES
    assert abs(report["p50_ms"] - 500) < 50
    assert report["max_ms"] == 999
