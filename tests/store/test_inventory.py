"""How much of an image is here: bytes in whole pieces, and those that are provisional."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from p2pcloop.store.have import HaveFile
from p2pcloop.store.home import Home
from p2pcloop.store.inventory import _here
from p2pcloop.store.provisional_log import ProvisionalLog
from tests.support.shared_layers import SharedLayer

PIECE = 16384
SIZE = 5 * PIECE + 700


@pytest.mark.parametrize(
    ("pieces", "ranges", "verified", "provisional"),
    [
        (None, [], 0, 0),
        (None, [(0, 512), (PIECE, 700)], 0, 1212),  # the metadata is not here yet
        ([], [(0, 512)], 0, 512),
        ([0, 5], [], PIECE + 700, 0),  # the last piece is a short one
        ([1], [(0, 512), (PIECE - 100, 300)], PIECE, 612),  # in part of a piece that is whole
        ([0, 2], [(PIECE - 1, PIECE + 2)], 2 * PIECE, PIECE),
        (range(6), [(5, 5)], SIZE, 0),
    ],
)
def test_each_byte_counts_once(
    tmp_path: Path,
    pieces: list[int] | None,
    ranges: list[tuple[int, int]],
    verified: int,
    provisional: int,
) -> None:
    home = Home.at(tmp_path)
    ref = SharedLayer(tmp_path / "other", 0, {0: 1}, size=8).ref
    layer = replace(ref, index_length=512, pack_length=SIZE - 512, piece_length=PIECE)
    directory = home.torrents / layer.torrent.hex()
    directory.mkdir(parents=True)
    if pieces is not None:
        have = HaveFile.create(directory / "have", layer.torrent, 6)
        have.add(pieces)
        have.close()
    ProvisionalLog(directory).keep({offset: bytes(length) for offset, length in ranges})
    assert _here(home, layer) == (verified, provisional)
