"""The temporary file of decoded chunks: what it gives out is right, or it gives out nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.image.spill import SpillFile

LIMIT = 10 * 4096


def content(key: int, blocks: int) -> memoryview:
    return memoryview(b"".join(bytes([key, block]) * 2048 for block in range(blocks)))


def file_of(spill: SpillFile) -> int:
    assert spill._file is not None
    return spill._file.fileno()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), max_size=30))
def test_what_is_kept_is_right_and_within_the_limit(puts: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spill = SpillFile(Path(folder), LIMIT)
        sizes: dict[int, int] = {}
        for key, blocks in puts:
            kept = spill.put(key, content(key, blocks))
            assert kept == (blocks <= 10)
            if kept:
                sizes[key] = blocks
                assert spill.read(key, 0, blocks * 4096) == content(key, blocks)
                assert os.fstat(file_of(spill)).st_size <= LIMIT
            for other, size in sizes.items():
                data = spill.read(other, 0, size * 4096)
                assert data is None or data == content(other, size)
        assert list(Path(folder).iterdir()) == []
        spill.close()


def test_the_oldest_make_room_and_a_full_file_holds_all_it_can(tmp_path: Path) -> None:
    spill = SpillFile(tmp_path, LIMIT)
    for key in range(7):
        assert spill.put(key, content(key, 3))
    # Three of three blocks fit: the seventh is where the first and the fourth were.
    assert [key in spill for key in range(7)] == [False] * 4 + [True] * 3
    spill.close()


def test_parts(tmp_path: Path) -> None:
    spill = SpillFile(tmp_path, LIMIT)
    spill.put(1, content(1, 3))
    for start, length in ((0, 4096), (4096, 8192), (512, 512), (3584, 1024), (11776, 512)):
        assert spill.read(1, start, length) == content(1, 3)[start : start + length]
    assert spill.read(1, 8192, 8192) is None
    assert spill.read(2, 0, 512) is None
    spill.close()


@pytest.mark.parametrize("damage", ["changed", "lost"])
def test_a_disk_that_loses_bytes_costs_the_chunk_and_no_more(tmp_path: Path, damage: str) -> None:
    spill = SpillFile(tmp_path, LIMIT)
    spill.put(1, content(1, 3))
    spill.put(2, content(2, 3))
    if damage == "changed":
        os.pwrite(file_of(spill), b"?", 4096 + 100)
    else:
        os.truncate(file_of(spill), 5 * 4096)
    good, bad = (2, 1) if damage == "changed" else (1, 2)
    assert spill.read(bad, 4096, 8192) is None
    assert bad not in spill
    assert spill.read(good, 0, 3 * 4096) == content(good, 3)
    spill.close()


def test_a_disk_that_takes_nothing_is_asked_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spill = SpillFile(tmp_path / "no such folder", LIMIT)
    assert not spill.put(1, content(1, 1))
    assert not spill.put(1, content(1, 1))
    assert len(caplog.records) == 1
    assert 1 not in spill
    spill.close()
