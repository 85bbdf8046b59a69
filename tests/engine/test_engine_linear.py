"""What a node does for one piece or one request does not grow with how many there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pcloopd.engine.fetch.backfill import fill
from p2pcloopd.engine.fetch.store import Store
from p2pcloopd.engine.fetch.tuning import TUNING
from tests.support.engines import Nodes
from tests.support.waiting import BOUND


async def test_a_fill_looks_at_each_piece_a_few_times(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = replace(TUNING, min_window=1, max_window=1)  # a piece at a time
    looks, has = [0], Store.has

    def counted(store: Store, piece: int) -> bool:
        looks[0] += 1
        return has(store, piece)

    async with nodes.open("1") as seeder, nodes.open("2", tuning=tuning) as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            layout = await torrent.metadata()
            monkeypatch.setattr(Store, "has", counted)
            await fill(torrent, 0)
    assert layout.pieces > 100
    assert looks[0] < 30 * layout.pieces


async def test_torrents_are_found_by_their_name(
    nodes: Nodes, content: bytes, tmp_path: Path
) -> None:
    """As each range request does."""
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        name = (await seeded.metadata()).name
        assert (seeder.named(name), seeder.named("another")) == ((seeded,), ())
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        assert reader.named(name) == ()
        with trio.fail_after(BOUND):
            await torrent.metadata()
        assert reader.named(name) == (torrent,)
        (tmp_path / "tmp").mkdir()
        assert await reader.remove(torrent.info_hash, tmp_path / "tmp")
        assert reader.named(name) == ()
