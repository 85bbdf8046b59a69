"""Metadata from outside: taken whole or refused with an error, never anything else."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath

import libtorrent as lt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloopd.engine.disk.content import Content, hash_pieces, scan
from p2pcloopd.engine.disk.metainfo import (
    Metainfo,
    TorrentLayout,
    bencode,
    info_dictionary,
    parse_info,
    piece_length_for,
)
from tests.support.engines import flip

GOOD: dict[bytes, object] = {
    b"name": b"image",
    b"piece length": 16384,
    b"pieces": bytes(40),
    b"files": [
        {b"length": 10, b"path": [b"index"]},
        {b"length": 20000, b"path": [b"pack"]},
    ],
}


def test_good_one() -> None:
    files = ((PurePosixPath("image/index"), 10), (PurePosixPath("image/pack"), 20000))
    layout = TorrentLayout("image", files, 16384, 20010)
    assert parse_info(GOOD) == Metainfo(layout, bytes(40))
    assert info_dictionary(layout, bytes(40)) == GOOD
    assert [layout.piece_size(0), layout.piece_size(1)] == [16384, 3626]
    assert layout.pieces_of(16383, 2) == range(2)


def test_single_file() -> None:
    info = {b"name": b"m", b"piece length": 16384, b"pieces": bytes(20), b"length": 5}
    meta = parse_info(info)
    assert meta.layout.files == ((PurePosixPath("m"), 5),)
    assert info_dictionary(meta.layout, meta.hashes) == info


@pytest.mark.parametrize(
    "change",
    [
        {b"name": b".."},
        {b"name": b"a/b"},
        {b"name": b""},
        {b"name": b"\xff"},
        {b"name": b"n" * 201},
        {b"name": b"line\nbreak"},
        {b"piece length": 0},
        {b"piece length": 8192},
        {b"piece length": 1 << 25},
        {b"piece length": 30000},
        {b"piece length": -16384},
        {b"pieces": bytes(20)},
        {b"pieces": bytes(39)},
        {b"pieces": "text"},
        {b"files": []},
        {b"files": [{b"length": 1, b"path": [b"f"]}] * 2},
        {b"files": [{b"length": -1, b"path": [b"f"]}]},
        {b"files": [{b"length": 20010, b"path": [b".."]}]},
        {b"files": [{b"length": 20010, b"path": []}]},
        {b"files": [{b"length": 20010, b"path": [b"f"], b"attr": b"l"}]},
        {
            b"files": [
                {b"length": 10, b"path": [b"F"]},
                {b"length": 20000, b"path": [b"f", b"g"]},
            ]
        },
        {b"files": [{b"length": 1 << 45, b"path": [b"f"]}]},
        {b"meta version": 2},
        {b"name.utf-8": b"image"},
        {
            b"files": [
                {b"length": 10, b"path": [b"index"]},
                {b"length": 20000, b"path": [b"pack"], b"path.utf-8": [b"other"]},
            ]
        },
    ],
)
def test_refused(change: dict[bytes, object]) -> None:
    with pytest.raises(FormatError):
        parse_info(GOOD | change)


_bencodable = st.recursive(
    st.integers(-5, 1 << 50) | st.binary(max_size=24),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GOOD, b"length", b"path"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(change=st.dictionaries(st.sampled_from([*GOOD, b"length"]), _bencodable), whole=_bencodable)
def test_parses_or_raises_format_error(change: dict[bytes, object], whole: object) -> None:
    for info in (GOOD | change, whole):
        try:
            meta = parse_info(info)
        except FormatError:
            continue
        assert len(meta.hashes) == 20 * meta.layout.pieces
        assert all(
            not path.is_absolute() and ".." not in path.parts for path, _ in meta.layout.files
        )


@given(value=_bencodable)
def test_bencode_is_what_libtorrent_reads(value: object) -> None:
    assert lt.bdecode(bencode({b"v": value})) == {b"v": value}


@given(size=st.integers(1, 1 << 44))
def test_piece_length(size: int) -> None:
    length = piece_length_for(size)
    assert length & (length - 1) == 0
    assert 1 << 14 <= length <= 1 << 24
    if size <= 128 << 20:
        assert length == 1 << 14
    elif size <= 128 << 30:
        assert size / 8192 <= length < size / 4096


def test_hashes_of_files_end_to_end(tmp_path: Path) -> None:
    root = tmp_path / "image"
    root.mkdir()
    content = bytes(range(256)) * 9000
    (root / "b").write_bytes(content[100_000:])
    (root / "a").write_bytes(content[:100_000])
    layout = scan(tmp_path)
    assert [str(path) for path, _ in layout.files] == ["image/a", "image/b"]
    files = Content(tmp_path, layout)
    progress: list[tuple[int, int]] = []
    hashes = hash_pieces(files, layout, lambda done, total: progress.append((done, total)))
    expected = [
        hashlib.sha1(content[i : i + 16384]).digest() for i in range(0, len(content), 16384)
    ]
    assert hashes == b"".join(expected)
    assert progress[-1] == (len(content), len(content))
    assert files.read(99_990, 20) == content[99_990:100_010]
    # Not every file system reads without waiting; what one does read is right.
    assert files.read_now(99_990, 20) in (content[99_990:100_010], None)
    (root / "b").write_bytes(content[100_000:-1])
    assert files.wrong_pieces(Metainfo(layout, hashes), range(layout.pieces)) == [layout.pieces - 1]
    assert files.read_now(len(content) - 10, 10) is None
    (root / "b").unlink()
    assert files.read_now(99_990, 20) is None


@pytest.mark.parametrize("piece_length", [1 << 14, 1 << 20, 1 << 22])
def test_wrong_and_lost_pieces_are_found_among_many(tmp_path: Path, piece_length: int) -> None:
    """More than are compared on one thread, in runs with gaps, across files, the last one short."""
    root = tmp_path / "image"
    root.mkdir()
    size = 20 * max(piece_length, 1 << 20) + 5000
    content = random.Random(1).randbytes(size)
    (root / "a").write_bytes(content[:100_000])
    (root / "b").write_bytes(content[100_000:])
    layout = replace(scan(tmp_path), piece_length=piece_length)
    files = Content(tmp_path, layout)
    meta = Metainfo(layout, hash_pieces(files, layout, lambda _done, _total: None))
    last = layout.pieces - 1
    asked = [piece for piece in range(layout.pieces) if piece not in (3, 4, last - 2)]
    assert files.wrong_pieces(meta, asked) == []
    flip(root / "a", 5)
    flip(root / "b", 7 * piece_length)
    assert files.wrong_pieces(meta, asked) == [0, (7 * piece_length + 100_000) // piece_length]
    os.truncate(root / "b", size - 100_000 - 5000 - 1)
    wrong = files.wrong_pieces(meta, range(layout.pieces))
    assert wrong[-1] == last
    assert all((piece + 1) * piece_length > size - 5001 for piece in wrong[2:])
    (root / "b").unlink()
    intact = 100_000 // piece_length
    assert files.wrong_pieces(meta, asked) == [
        piece for piece in asked if piece == 0 or piece >= intact
    ]


def test_torrents_and_settings_know_no_libtorrent() -> None:
    code = (
        "import sys, json\n"
        "from p2pcloopd.engine import torrent\n"
        "from p2pcloopd.engine.bt import listening, settings\n"
        "from p2pcloopd.engine.disk import seeding\n"
        "print(json.dumps('libtorrent' in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)
    assert json.loads(run.stdout) is False
