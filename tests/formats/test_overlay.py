"""The overlay: what it keeps, its format byte by byte, and what it refuses."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import (
    BusyError,
    FormatError,
    MismatchError,
    NotHereError,
    P2pcloopError,
    StorageError,
)
from p2pcloop.formats import holes, overlay_file
from p2pcloop.formats.overlay import Overlay, OverlayInfo, State
from p2pcloop.formats.overlay_header import HEADER_SIZE, PAGE_SIZE, Header
from p2pcloop.formats.overlay_states import MAX_HOT_PAGES, StateTable, unpack_page
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE

IMAGE = bytes(range(32))
MANIFEST = bytes(range(32, 64))
GOLDEN = Path(__file__).parent.parent / "data" / "overlay-v1.delta"


def block(fill: int) -> memoryview:
    return memoryview(bytes([fill]) * BLOCK_SIZE)


def read(overlay: Overlay, first: int, count: int = 1) -> bytes:
    buffer = bytearray(count * BLOCK_SIZE)
    overlay.read_into(first * BLOCK_SIZE, [memoryview(buffer)])
    return bytes(buffer)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.delta"
    Overlay.create(path, image_id=IMAGE, image_size=64 * BLOCK_SIZE, name="@key/debian").close()
    return path


# --- what it keeps -------------------------------------------------------------------------------


def test_new_overlay_is_empty_private_and_alone_in_its_folder(path: Path) -> None:
    with Overlay.open(path, image_id=IMAGE) as overlay:
        info = overlay.info()
        assert overlay.runs(0, 64) == ((0, 64, State.ABSENT),)
    assert (info.image_size, info.image_id, info.manifest_id) == (64 * BLOCK_SIZE, IMAGE, None)
    assert (info.name, info.data_blocks, info.zero_blocks) == ("@key/debian", 0, 0)
    assert info.allocated < 64 * BLOCK_SIZE
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_flushed_blocks_are_there_when_it_is_opened_again(path: Path) -> None:
    with Overlay.open(path, image_id=IMAGE) as overlay:
        overlay.write(3 * BLOCK_SIZE, [block(1), block(2)])
        overlay.zero(4, 2)
        overlay.prepare_flush()()
        overlay.write(9 * BLOCK_SIZE, [block(9)])
    with Overlay.open(path, image_id=IMAGE) as overlay:
        assert list(overlay.runs(0, 10)) == [
            (0, 3, State.ABSENT),
            (3, 1, State.DATA),
            (4, 2, State.ZERO),
            (6, 4, State.ABSENT),
        ]
        assert (overlay.state(3), overlay.state(9)) == (State.DATA, State.ABSENT)
        assert read(overlay, 3) == block(1)
        info = overlay.info()
        assert (info.data_blocks, info.zero_blocks) == (1, 2)


def test_zero_gives_room_back(path: Path) -> None:
    with Overlay.open(path, image_id=IMAGE) as overlay:
        empty = overlay.info().allocated
        overlay.write(0, [block(1)] * 32)
        overlay.prepare_flush()()
        full = overlay.info().allocated
        assert full - empty == 32 * BLOCK_SIZE
        overlay.zero(0, 16)
        assert full - overlay.info().allocated == 16 * BLOCK_SIZE
        assert list(overlay.runs(0, 32)) == [(0, 16, State.ZERO), (16, 16, State.DATA)]


def test_room_is_kept_where_no_holes_can_be_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "_fallocate", lambda: None)
    with Overlay.open(path, image_id=IMAGE) as overlay:
        overlay.write(0, [block(1)])
        overlay.zero(0, 1)
        overlay.prepare_flush()()
    with Overlay.open(path, image_id=IMAGE) as overlay:
        assert overlay.state(0) is State.ZERO


def test_temporary_overlay_works_and_leaves_no_file(tmp_path: Path) -> None:
    with Overlay.create_temporary(tmp_path, image_id=IMAGE, image_size=MAX_IMAGE_SIZE >> 10) as it:
        assert list(tmp_path.iterdir()) == []
        it.write(7 * BLOCK_SIZE, [block(7)])
        it.prepare_flush()()
        assert read(it, 7) == block(7)
        assert it.info().data_blocks == 1


def test_more_views_than_one_system_call_takes(path: Path) -> None:
    sectors = [memoryview(bytes([n % 251]) * 16) for n in range(64 * 256)]
    with Overlay.open(path, image_id=IMAGE) as overlay:
        overlay.write(0, sectors)
        whole = bytearray(64 * BLOCK_SIZE)
        overlay.read_into(0, [memoryview(whole)[at : at + 32] for at in range(0, len(whole), 32)])
    assert bytes(whole) == b"".join(sectors)


@given(
    st.lists(st.binary(min_size=1, max_size=9), max_size=12),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
)
def test_short_transfers_are_continued(parts: list[bytes], steps: list[int]) -> None:
    moved = bytearray()
    limit = itertools.cycle(steps)

    def call(descriptor: int, views: Sequence[memoryview | bytearray | bytes], offset: int) -> int:
        assert (descriptor, offset) == (5, 100 + len(moved))
        some = b"".join(bytes(view) for view in views)[: next(limit)]
        moved.extend(some)
        return len(some)

    assert overlay_file._transfer(call, 5, 100, parts)
    assert bytes(moved) == b"".join(parts)


@given(
    st.lists(
        st.tuples(st.integers(0, 9999), st.integers(1, 5000), st.sampled_from(State)), max_size=6
    ),
    st.integers(0, 9999),
    st.integers(1, 10_000),
)
def test_runs_match_a_naive_table(
    changes: list[tuple[int, int, State]], first: int, count: int
) -> None:
    table, naive = StateTable(10_000, 12_288), [State.ABSENT] * 10_000
    for start, length, state in changes:
        end = min(start + length, 10_000)
        present = any(naive[start:end])
        assert table.set(start, end - start, state) == present
        naive[start:end] = [state] * (end - start)
    count = min(count, 10_000 - first)
    flat = [
        (at, state)
        for start, length, state in table.runs(first, count)
        for at, state in zip(range(start, start + length), itertools.repeat(state))
    ]
    assert flat == list(enumerate(naive[first : first + count], first))
    states = [state for _, _, state in table.runs(first, count)]
    assert all(left is not right for left, right in itertools.pairwise(states))
    assert table.tally() == {state: naive.count(state) for state in State}


TERABYTE = 1 << 28  # blocks


def test_memory_of_a_device_that_was_discarded_is_bounded() -> None:
    tracemalloc.start()
    try:
        table = StateTable(TERABYTE, TERABYTE)
        for first in range(0, TERABYTE, 1 << 18):  # 1 GiB each, the most that a guest may ask for
            assert not table.set(first, 1 << 18, State.ZERO)
        changed = table.take_changed()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert table.runs(0, TERABYTE) == ((0, TERABYTE, State.ZERO),)
    assert table.tally()[State.ZERO] == TERABYTE
    assert len(changed) == TERABYTE // PAGE_SIZE
    assert {unpack_page(page) for page in set(changed.values())} == {b"Z" * PAGE_SIZE}
    assert peak < 24 << 20  # with a byte for each block it was 512 MiB


def test_memory_of_a_device_of_which_little_is_left_everywhere_is_bounded() -> None:
    pages = 4 * MAX_HOT_PAGES
    table = StateTable(pages * PAGE_SIZE, pages * PAGE_SIZE)
    tracemalloc.start()
    try:
        for page in range(pages):
            table.set(page * PAGE_SIZE, PAGE_SIZE, State.ZERO)
            table.set(page * PAGE_SIZE + page % 4000, 3, State.DATA)
        changed = table.take_changed()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < MAX_HOT_PAGES * (PAGE_SIZE + 512) + pages * 512
    for page in (0, 1, pages - 1):
        at = page % 4000
        expected = (b"Z" * at + b"DDD").ljust(PAGE_SIZE, b"Z")
        assert unpack_page(changed[page]) == expected
        assert table[page * PAGE_SIZE + at] is State.DATA


# --- the format ----------------------------------------------------------------------------------


def make_golden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcloop.formats.overlay.time.time", lambda: 1_700_000_000.5)
    with Overlay.create(
        path,
        image_id=IMAGE,
        image_size=6 * BLOCK_SIZE,
        manifest_id=MANIFEST,
        name="@key/größe",
    ) as overlay:
        overlay.write(BLOCK_SIZE, [memoryview(b"one block " * 410)[:BLOCK_SIZE]])
        overlay.write(3 * BLOCK_SIZE, [block(3), block(4)])
        overlay.zero(4, 2)
        overlay.prepare_flush()()


def test_golden_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_golden(tmp_path / "made", monkeypatch)
    assert (tmp_path / "made").read_bytes() == GOLDEN.read_bytes()


def test_golden_file_is_read() -> None:
    with Overlay.open(GOLDEN, image_id=IMAGE, read_only=True) as overlay:
        info = overlay.info()
        assert replace(info, allocated=0) == OverlayInfo(
            "block", 6 * BLOCK_SIZE, IMAGE, MANIFEST, "@key/größe", 1_700_000_000, 2, 2, 0
        )
        assert "".join(overlay.state(n).name[0] for n in range(6)) == "ADADZZ"
        assert read(overlay, 1) == (b"one block " * 410)[:BLOCK_SIZE]
        assert read(overlay, 3) == block(3)


def test_any_flipped_bit_of_the_header_is_noticed() -> None:
    raw = Header(BLOCK_SIZE, IMAGE, None, "@key/label", 0).pack()
    for at, bit in itertools.product(range(HEADER_SIZE), range(8)):
        bad = bytearray(raw)
        bad[at] ^= 1 << bit
        with pytest.raises(FormatError):
            Header.unpack(bytes(bad))


@pytest.mark.parametrize(
    ("offset", "field"),
    [
        pytest.param(8, struct.pack("<I", 2), id="version"),
        pytest.param(12, struct.pack("<I", 2), id="flags"),
        pytest.param(16, struct.pack("<Q", 0), id="no blocks"),
        pytest.param(16, struct.pack("<Q", 4097), id="half a block"),
        pytest.param(16, struct.pack("<Q", MAX_IMAGE_SIZE + 4096), id="too large"),
        pytest.param(24, struct.pack("<Q", 1 << 60), id="time"),
        pytest.param(96, struct.pack("<I", 512), id="block size"),
        pytest.param(100, b"\xff\xfe", id="name not UTF-8"),
        pytest.param(100, b"\x1b[2J", id="name that draws on a terminal"),
        pytest.param(100, b"a\0b", id="name with NUL"),
        pytest.param(356, b"\1", id="reserved"),
    ],
)
def test_bad_fields_with_a_right_checksum_are_refused(offset: int, field: bytes) -> None:
    raw = bytearray(Header(BLOCK_SIZE, IMAGE, None, "", 0).pack())
    raw[offset : offset + len(field)] = field
    raw[-4:] = struct.pack("<I", zlib.crc32(raw[:-4]))
    with pytest.raises(FormatError):
        Header.unpack(bytes(raw))


@given(st.binary(max_size=80), st.integers(0, HEADER_SIZE))
def test_header_parser_raises_nothing_else(junk: bytes, at: int) -> None:
    raw = bytearray(Header(BLOCK_SIZE, IMAGE, None, "", 0).pack())
    raw[at : at + len(junk)] = junk
    del raw[HEADER_SIZE:]
    raw[-4:] = struct.pack("<I", zlib.crc32(raw[:-4]))
    with contextlib.suppress(FormatError):
        Header.unpack(bytes(raw)).pack()


@pytest.mark.parametrize(
    "header",
    [
        Header(BLOCK_SIZE, b"short", None, "", 0),
        Header(BLOCK_SIZE, IMAGE, bytes(32), "", 0),
        Header(BLOCK_SIZE, IMAGE, b"short", "", 0),
        Header(BLOCK_SIZE, IMAGE, None, "ö" * 129, 0),
        Header(0, IMAGE, None, "", 0),
    ],
)
def test_a_header_out_of_limits_is_not_written(header: Header) -> None:
    with pytest.raises(ValueError, match="an overlay cannot be made"):
        header.pack()


# --- what it refuses -----------------------------------------------------------------------------


def refused(path: Path, error: type[P2pcloopError]) -> str:
    """Open `path`, expect `error`, and check that the file was left alone; return the message."""
    before, times = path.read_bytes(), path.stat().st_mtime_ns
    with pytest.raises(error) as caught:
        Overlay.open(path, image_id=IMAGE)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, times)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    return f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("content", [b"", b"P2PCOVL\n", b"#!/bin/sh\n" * 999, bytes(8192)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    refused(tmp_path / "f", FormatError)


@pytest.mark.parametrize("size", [4095, 4096, 8191, 8192, 8192 + 64 * 4096 - 1, 8193 + 64 * 4096])
def test_wrong_length_is_refused(path: Path, size: int) -> None:
    os.truncate(path, size)
    refused(path, FormatError)


def test_any_flipped_bit_of_a_state_is_noticed(path: Path) -> None:
    with Overlay.open(path, image_id=IMAGE) as overlay:
        overlay.write(0, [block(1)])
        overlay.zero(1, 1)
        overlay.prepare_flush()()
    good = path.read_bytes()
    for at, bit in itertools.product((0, 1, 2, 63, 64, 4095), range(8)):
        bad = bytearray(good)
        bad[HEADER_SIZE + at] ^= 1 << bit
        path.write_bytes(bad)
        assert f"block {at} has no valid state" in refused(path, FormatError)
    path.write_bytes(good[: HEADER_SIZE + 64] + b"D" + good[HEADER_SIZE + 65 :])
    assert "past its last block" in refused(path, FormatError)


def test_another_image_is_refused_and_both_are_named(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(MismatchError) as caught:
        Overlay.open(path, image_id=MANIFEST)
    assert IMAGE.hex() in str(caught.value)
    assert MANIFEST.hex() in str(caught.value)
    assert "@key/debian" in str(caught.value)
    assert caught.value.hint
    assert path.read_bytes() == before
    Overlay.open(path, image_id=None).close()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotHereError):
        Overlay.open(tmp_path / "none", image_id=IMAGE)
    with pytest.raises(StorageError):
        Overlay.open(tmp_path, image_id=IMAGE)
    with pytest.raises(FormatError):
        Overlay.open(tmp_path, image_id=IMAGE, read_only=True)
    os.mkfifo(tmp_path / "pipe")
    for read_only in (False, True):
        with pytest.raises(FormatError):
            Overlay.open(tmp_path / "pipe", image_id=IMAGE, read_only=read_only)


def test_create_never_replaces_a_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(StorageError) as caught:
        Overlay.create(path, image_id=MANIFEST, image_size=BLOCK_SIZE)
    assert caught.value.errno == errno.EEXIST
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(StorageError) as caught:
        Overlay.create(path.parent / "no" / "f", image_id=IMAGE, image_size=BLOCK_SIZE)
    assert caught.value.errno == errno.ENOENT


def test_opened_twice_is_refused(path: Path) -> None:
    with Overlay.open(path, image_id=IMAGE):
        for read_only in (False, True):
            with pytest.raises(BusyError, match=re.escape(str(path))):
                Overlay.open(path, image_id=IMAGE, read_only=read_only)
        script = (
            "import sys; from pathlib import Path\n"
            "from p2pcloop.errors import BusyError\n"
            "from p2pcloop.formats.overlay import Overlay\n"
            "try: Overlay.open(Path(sys.argv[1]), image_id=None)\n"
            "except BusyError as err: sys.exit(err.exit_code)\n"
        )
        done = subprocess.run([sys.executable, "-c", script, path], timeout=120, check=False)
        assert done.returncode == BusyError.exit_code
    with Overlay.open(path, image_id=IMAGE, read_only=True) as one:
        with Overlay.open(path, image_id=IMAGE, read_only=True) as other:
            assert one.info() == other.info()
        with pytest.raises(BusyError):
            Overlay.open(path, image_id=IMAGE)
    created = Overlay.create(path.with_name("new"), image_id=IMAGE, image_size=BLOCK_SIZE)
    with created, pytest.raises(BusyError):
        Overlay.open(created.path, image_id=IMAGE)


def test_read_only_writes_nothing(path: Path) -> None:
    before = path.read_bytes()
    with Overlay.open(path, image_id=IMAGE, read_only=True) as overlay:
        with pytest.raises(StorageError):
            overlay.write(0, [block(1)])
        overlay.zero(0, 1)
        with pytest.raises(StorageError):
            overlay.prepare_flush()()
    assert path.read_bytes() == before


def test_a_copy_is_of_the_time_of_its_preparation(tmp_path: Path) -> None:
    """It may be made on another thread while the overlay is written."""
    copies = tmp_path / "copies"
    copies.mkdir()
    with contextlib.closing(
        Overlay.create(tmp_path / "o", image_id=IMAGE, image_size=9 * BLOCK_SIZE)
    ) as overlay:
        overlay.write(0, [memoryview(b"a" * BLOCK_SIZE)])
        overlay.zero(1, 1)
        copy = overlay.prepare_copy()
        overlay.write(2 * BLOCK_SIZE, [memoryview(b"b" * BLOCK_SIZE)])
        path = copy(copies)
        with contextlib.closing(Overlay.open(path, image_id=IMAGE, read_only=True)) as copied:
            assert [copied.state(n) for n in range(3)] == [State.DATA, State.ZERO, State.ABSENT]
            data = memoryview(bytearray(BLOCK_SIZE))
            copied.read_into(0, [data])
            assert data == b"a" * BLOCK_SIZE


def test_a_copy_that_nobody_wants_any_more_is_an_error_of_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wanted it has deleted the folder; another error would end the guest's disk."""
    copies = tmp_path / "copies"
    copies.mkdir()

    def fill(*_: object) -> None:
        shutil.rmtree(copies)
        raise StorageError("no space", errno=errno.ENOSPC)

    monkeypatch.setattr(overlay_file.OverlayFile, "copy_data", fill)
    with contextlib.closing(
        Overlay.create(tmp_path / "o", image_id=IMAGE, image_size=BLOCK_SIZE)
    ) as overlay:
        copy = overlay.prepare_copy()
        with pytest.raises(StorageError, match="no space"):
            copy(copies)
