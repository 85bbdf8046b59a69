"""Where a layer's bytes come from: local files, the store, what has just arrived."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import CorruptError, StorageError
from p2pcloop.image import content as content_module
from p2pcloop.image.api import ByteRange, Missing
from p2pcloop.image.content import LocalContent, StoredContent
from p2pcloop.image.layer import Layer, load_header
from p2pcloop.store.have import HaveFile
from tests.support.descriptors import open_descriptors
from tests.support.images import PIECE, StoredLayer, make_image

RAW = make_image(6 * 65536, seed=2)


@pytest.fixture
def stored(tmp_path: Path) -> StoredLayer:
    return StoredLayer(tmp_path, RAW)


def content_of(stored: StoredLayer) -> StoredContent:
    return StoredContent(stored.directory, stored.ref)


def missing_of(content: StoredContent, offset: int, length: int) -> ByteRange:
    with pytest.raises(Missing) as caught:
        content.read(offset, length)
    (wanted,) = caught.value.ranges
    return wanted


def open_layer(content: StoredContent, stored: StoredLayer) -> Layer:
    return Layer(content, load_header(content, stored.ref.layer_id, stored.ref.header_length))


# --- local files ----------------------------------------------------------------------------------


def test_index_and_file_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    content = LocalContent(tmp_path / "file", b"index")
    assert content.read(0, 5) == b"index"
    assert content.read(5, 10) == b"0123456789"
    assert content.read(9, 3) == b"456"
    content.close()


def test_a_local_file_that_became_shorter_is_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    content = LocalContent(path, b"index")
    path.write_bytes(b"0123")
    with pytest.raises(CorruptError, match=f"{path} does not match its hash") as caught:
        content.read(5, 10)
    assert caught.value.hint
    content.close()


def test_a_local_disk_that_refuses() -> None:
    with pytest.raises(StorageError, match="cannot open"):
        LocalContent(Path("/nonexistent/file"), b"")
    # Address 0 of this process is mapped to nothing: reading it is an I/O error.
    content = LocalContent(Path("/proc/self/mem"), b"")
    with pytest.raises(StorageError, match="cannot read") as caught:
        content.read(0, 16)
    assert caught.value.errno == 5
    content.close()


# --- the store ------------------------------------------------------------------------------------


def test_nothing_is_here_before_the_torrent_has_a_place(stored: StoredLayer) -> None:
    content = StoredContent(stored.directory.with_name("00" * 20), stored.ref)
    assert missing_of(content, 3, 7) == ByteRange(stored.ref.torrent, 3, 7)
    content.close()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_the_have_file_says_is_read_and_the_rest_is_missing(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stored = StoredLayer(Path(folder), RAW)
        content = content_of(stored)
        for _ in range(3):
            here = data.draw(st.sets(st.integers(0, stored.pieces - 1)))
            stored.store(sorted(here))
            offset = data.draw(st.integers(0, len(stored.content) - 1))
            length = data.draw(st.integers(1, min(3 * PIECE, len(stored.content) - offset)))
            pieces = range(offset // PIECE, (offset + length - 1) // PIECE + 1)
            border = stored.ref.index_length
            if offset < border:
                length = min(length, border - offset)
                pieces = range(offset // PIECE, (offset + length - 1) // PIECE + 1)
            if all(stored.have.has(piece, piece) for piece in pieces):
                assert content.read(offset, length) == stored.content[offset : offset + length]
            else:
                wanted = ByteRange(stored.ref.torrent, offset, length)
                assert missing_of(content, offset, length) == wanted
        content.close()
        stored.have.close()


def test_what_arrives_is_read_once_and_nothing_else_is(stored: StoredLayer) -> None:
    content = content_of(stored)
    wanted = missing_of(content, 0, 112)
    content.accept(wanted, stored.answer(wanted))
    assert missing_of(content, 0, 111) == ByteRange(stored.ref.torrent, 0, 111)
    assert content.read(0, 112) == stored.content[:112]
    assert missing_of(content, 0, 112) == wanted
    content.close()


def test_a_have_file_that_appears_later_is_seen(stored: StoredLayer) -> None:
    have = stored.directory / "have"
    moved = have.rename(have.with_name("later"))
    content = content_of(stored)
    missing_of(content, 0, 112)
    moved.rename(have)
    stored.store([0])
    assert content.read(0, 112) == stored.content[:112]
    content.close()


@pytest.mark.parametrize("size", [0, 39, 41])
def test_a_have_file_that_is_cut_short_while_in_use_means_that_nothing_is_here(
    stored: StoredLayer, size: int
) -> None:
    have = stored.directory / "have"
    stored.store(range(stored.pieces))
    content = content_of(stored)
    assert content.read(0, 112) == stored.content[:112]
    whole = have.read_bytes()
    os.truncate(have, size)
    last = len(stored.content) - 1
    assert missing_of(content, last, 1) == ByteRange(stored.ref.torrent, last, 1)
    have.write_bytes(whole)
    assert content.read(last, 1) == stored.content[-1:]
    content.close()


@pytest.mark.parametrize("torn", [b"", b"P2PCHAVE", bytes(60), b"P2PCHAVE" + b"\xff" * 60])
def test_a_torn_have_file_means_that_nothing_is_here(stored: StoredLayer, torn: bytes) -> None:
    stored.store(range(stored.pieces))
    (stored.directory / "have").write_bytes(torn)
    content = content_of(stored)
    assert missing_of(content, 0, 112) == ByteRange(stored.ref.torrent, 0, 112)
    HaveFile.create(
        stored.directory / "have", stored.ref.torrent, stored.pieces, complete=True
    ).close()
    assert content.read(0, 112) == stored.content[:112]
    content.close()


def test_wrong_bytes_on_disk_ask_to_heal_and_the_read_goes_on(stored: StoredLayer) -> None:
    stored.store(range(stored.pieces))
    content = content_of(stored)
    layer = open_layer(content, stored)
    good = layer.read_chunk(0)
    chunk = layer.chunk(0)
    at = stored.ref.index_length + chunk.offset
    pack = stored.pack_path.read_bytes()
    damaged = bytearray(pack)
    damaged[chunk.offset + 9] ^= 1
    # The same chunk may go bad again and again, on a bad disk.
    for _ in range(3):
        stored.write(stored.index_path.read_bytes(), damaged)
        with pytest.raises(Missing) as caught:
            layer.read_chunk(0)
        (wanted,) = caught.value.ranges
        assert wanted == ByteRange(stored.ref.torrent, at, chunk.length, heal=True)
        stored.write(stored.index_path.read_bytes(), pack)
        content.accept(wanted, stored.answer(wanted))
        assert layer.read_chunk(0) == good  # what arrived
        assert layer.read_chunk(0) == good  # what lies here again
    layer.close()


@pytest.mark.parametrize("part", ["header", "map", "page"])
def test_each_part_of_the_index_is_healed(stored: StoredLayer, part: str) -> None:
    stored.store(range(stored.pieces))
    header = load_header(content_of(stored), stored.ref.layer_id, stored.ref.header_length)
    offset = {"header": 20, "map": header.length, "page": header.page_extent(0)[0]}[part]
    index = bytearray(stored.index_path.read_bytes())
    index[offset] ^= 1
    stored.write(index, b"")
    content = content_of(stored)
    with pytest.raises(Missing) as caught:
        open_layer(content, stored).chunk(0)
    (wanted,) = caught.value.ranges
    assert wanted.heal
    content.accept(wanted, stored.answer(wanted))
    assert open_layer(content, stored).chunk(0).offset == 0
    content.close()


def test_a_wrong_arrival_asks_to_heal_and_wrong_again_is_the_publishers(
    stored: StoredLayer,
) -> None:
    content = content_of(stored)
    length = stored.ref.header_length

    def load() -> None:
        load_header(content, stored.ref.layer_id, length)

    with pytest.raises(Missing) as caught:
        load()
    content.accept(caught.value.ranges[0], bytes(length))
    with pytest.raises(Missing) as caught:
        load()
    (wanted,) = caught.value.ranges
    assert wanted == ByteRange(stored.ref.torrent, 0, length, heal=True)
    content.accept(wanted, bytes(length))
    with pytest.raises(CorruptError, match="contradicts itself") as error:
        load()
    assert error.value.hint
    # It is looked at anew when it is read again.
    wanted = missing_of(content, 0, length)
    assert not wanted.heal
    content.accept(wanted, stored.answer(wanted))
    load()
    content.close()


def test_an_arrival_of_another_length_is_wrong(stored: StoredLayer) -> None:
    content = content_of(stored)
    length = stored.ref.header_length
    for data in (b"", stored.content[: length - 1], stored.content[: length + 1]):
        content.accept(ByteRange(stored.ref.torrent, 0, length), data)
        with pytest.raises(Missing) as caught:
            load_header(content, stored.ref.layer_id, length)
        assert caught.value.ranges[0].heal
    content.close()


@pytest.mark.parametrize("cut", [0, 1])
def test_a_file_in_the_store_that_became_shorter_asks_to_heal(
    stored: StoredLayer, cut: int
) -> None:
    stored.store(range(stored.pieces))
    content = content_of(stored)
    layer = open_layer(content, stored)
    chunk = layer.chunk(0)
    with stored.pack_path.open("r+b") as file:
        file.truncate(cut)
    with pytest.raises(Missing) as caught:
        layer.read_chunk(0)
    assert caught.value.ranges[0] == ByteRange(
        stored.ref.torrent, stored.ref.index_length, chunk.length, heal=True
    )
    layer.close()


@pytest.mark.parametrize("lost", ["pack", "index", "folder", "data"])
def test_files_that_were_deleted_ask_to_heal(stored: StoredLayer, lost: str) -> None:
    """A cloop that is seeded where it lies is a link: the user may move it away."""
    stored.store(range(stored.pieces))
    stored.pack_path.unlink()
    if lost != "pack":
        stored.index_path.unlink()
    if lost in ("folder", "data"):
        stored.pack_path.parent.rmdir()
    if lost == "data":
        (stored.directory / "data").rmdir()
    offset = stored.ref.index_length if lost == "pack" else 0
    content = content_of(stored)
    wanted = missing_of(content, offset, 100)
    assert wanted == ByteRange(stored.ref.torrent, offset, 100, heal=True)
    descriptors = open_descriptors()
    for _ in range(3):
        missing_of(content, offset, 100)
    assert open_descriptors() <= descriptors
    content.close()


def test_a_disk_that_refuses(stored: StoredLayer) -> None:
    stored.store(range(stored.pieces))
    stored.index_path.unlink()
    stored.index_path.mkdir()
    content = content_of(stored)
    with pytest.raises(StorageError, match="cannot read"):
        content.read(0, 112)
    content.close()
    content.close()


def test_arrivals_are_bounded_and_the_oldest_go_first(
    stored: StoredLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_module, "ARRIVALS_LIMIT", 1000)
    content = content_of(stored)

    def accept(offset: int, length: int) -> None:
        content.accept(ByteRange(stored.ref.torrent, offset, length), bytes(length))

    for offset in (0, 400, 800):
        accept(offset, 400)
    assert missing_of(content, 0, 400)
    accept(400, 400)  # again: it is the same bytes, and counted once
    accept(1200, 200)
    assert content._arrived == 1000
    assert content.read(800, 400) == bytes(400)
    assert content.read(400, 400) == bytes(400)
    assert content.read(1200, 200) == bytes(200)
    assert content._arrived == 0
    # One that is larger than the limit alone is kept until it is read, or nothing would go on.
    accept(0, 5000)
    assert content.read(0, 5000) == bytes(5000)
    content.close()
