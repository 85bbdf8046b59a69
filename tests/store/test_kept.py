"""Decoded chunks that are kept: what is read is right, whatever became of the file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.store import kept
from p2pcloop.store.home import Home
from p2pcloop.store.kept import KeptChunks, add_chunks, forget_chunks, keep_chunks, kept_path
from tests.support.waiting import BOUND

IMAGE = bytes(range(32))
CONTENTS = [random.Random(n).randbytes(size) for n, size in enumerate((4096, 65536, 8192))]
CHUNKS = [(hashlib.sha256(content).digest(), content) for content in CONTENTS]


def views(chunks: list[tuple[bytes, bytes]]) -> list[tuple[bytes, memoryview]]:
    return [(chunk_id, memoryview(content)) for chunk_id, content in chunks]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def read_all(home: Home) -> list[bytes | None]:
    found = KeptChunks(home, IMAGE)
    try:
        return [found.read(chunk_id, len(content)) for chunk_id, content in CHUNKS]
    finally:
        found.close()


def test_what_was_kept_is_read(home: Home) -> None:
    assert read_all(home) == [None] * 3
    assert keep_chunks(home, IMAGE, views(CHUNKS))
    assert read_all(home) == CONTENTS
    found = KeptChunks(home, IMAGE)
    assert CHUNKS[0][0] in found
    assert bytes(32) not in found
    assert found.read(bytes(32), 4096) is None
    # The index is signed, and says another size.
    assert found.read(CHUNKS[0][0], 8192) is None
    found.close()
    assert found.read(CHUNKS[1][0], 65536) is None
    forget_chunks(home, IMAGE)
    forget_chunks(home, IMAGE)
    assert read_all(home) == [None] * 3
    assert list(home.kept.iterdir()) == []


def test_the_golden_file(home: Home) -> None:
    """The bytes of docs/formats/kept.md."""
    content = b"a" * 4096
    digest = hashlib.sha256(content).digest()
    data = b"P2PCKEPT" + bytes.fromhex("0100000001000000") + digest
    data += bytes.fromhex("3c0000000000000000100000") + content
    home.kept.mkdir()
    kept_path(home, IMAGE).write_bytes(data)
    found = KeptChunks(home, IMAGE)
    assert found.read(digest, 4096) == content
    found.close()
    assert keep_chunks(home, IMAGE, [(digest, memoryview(content))])
    assert kept_path(home, IMAGE).read_bytes() == data


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_file_gives_nothing_wrong(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        home.create()
        assert keep_chunks(home, IMAGE, views(CHUNKS))
        path = kept_path(home, IMAGE)
        whole = bytearray(path.read_bytes())
        table = 16 + 44 * len(CHUNKS)
        at = data.draw(st.one_of(st.integers(0, table - 1), st.integers(table, len(whole) - 1)))
        if data.draw(st.booleans()):
            del whole[at:]
        else:
            whole[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
        found = read_all(home)
        assert all(got in (None, right) for got, right in zip(found, CONTENTS, strict=True))


def test_chunks_of_earlier_boots_stay_as_far_as_there_is_room(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keep_chunks(home, IMAGE, views(CHUNKS[:2]))
    found = KeptChunks(home, IMAGE)
    assert found.joined(views(CHUNKS[2:])) == views([CHUNKS[2], CHUNKS[0], CHUNKS[1]])
    assert found.joined(views(CHUNKS)) == views(CHUNKS)
    monkeypatch.setattr(kept, "MAX_SIZE", 3 * 4096)
    assert found.joined(views(CHUNKS[2:])) == views([CHUNKS[2], CHUNKS[0]])
    found.close()


def test_chunks_are_added_if_enough_of_them_are_new(home: Home) -> None:
    found = KeptChunks(home, IMAGE)
    found.refresh()
    assert found.size == 0
    add_chunks(home, IMAGE, views(CHUNKS[1:2]), worth=2)
    assert found.size == 0
    found.refresh()
    assert found.size == 65536
    assert found.lacking(views(CHUNKS)) == 4096 + 8192
    add_chunks(home, IMAGE, views(CHUNKS[:2]), worth=17)  # 4096 of 17 * 4096 bytes
    found.refresh()
    assert found.size == 65536
    add_chunks(home, IMAGE, views(CHUNKS[:2]), worth=18)
    found.refresh()
    assert found.size == 65536 + 4096
    add_chunks(home, IMAGE, views(CHUNKS[2:]), worth=16)
    forget_chunks(home, IMAGE)
    found.refresh()  # what is open stays
    assert found.read(CHUNKS[1][0], 65536) == CONTENTS[1]
    found.close()


def test_processes_add_their_chunks_one_after_the_other(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.kept.mkdir()
    folder = os.open(home.kept, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    waits = threading.Event()
    lock = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        waits.set()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with ThreadPoolExecutor(1) as pool:
        try:
            adding = pool.submit(add_chunks, home, IMAGE, views(CHUNKS[1:2]), worth=16)
            assert waits.wait(BOUND)
            assert keep_chunks(home, IMAGE, views(CHUNKS[:1]))  # by the one that has the lock
        finally:
            os.close(folder)
        adding.result()
    assert read_all(home) == [*CONTENTS[:2], None]


def test_the_images_that_were_unused_for_longest_go(home: Home) -> None:
    images = [bytes([n]) * 32 for n in range(kept.MAX_IMAGES + 2)]
    for n, image in enumerate(images[:-1]):
        assert keep_chunks(home, image, views(CHUNKS[:1]))
        os.utime(kept_path(home, image), (1000 + n, 1000 + n))
    KeptChunks(home, images[1]).close()  # a use
    assert keep_chunks(home, images[-1], views(CHUNKS[:1]))
    left = {path.name for path in home.kept.iterdir()}
    assert left == {image.hex() for image in (images[1], *images[3:])}


def test_nothing_is_kept_on_a_disk_that_is_nearly_full(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = os.statvfs(home.root)
    monkeypatch.setattr(kept, "SHARE_OF_ROOM", room.f_bavail * room.f_frsize)
    assert not keep_chunks(home, IMAGE, views(CHUNKS))
    assert list(home.kept.iterdir()) == []


def test_a_disk_that_refuses_costs_nothing(home: Home) -> None:
    home.kept.write_bytes(b"no directory")
    assert not keep_chunks(home, IMAGE, views(CHUNKS))
    assert read_all(home) == [None] * 3
