"""Clients that others wrote hang up on a reader that wants nothing at the moment."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pcloopd.engine.fetch.backfill import fetch_all
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes
from tests.support.foreign import (
    Client,
    Content,
    aria2,
    hurried,
    libtorrent,
    seeding,
    transmission,
)
from tests.support.waiting import BOUND, until

pytestmark = pytest.mark.interop

PIECE = 1 << 14
CONTENT = random.Random(9).randbytes(1 << 20)


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


async def gone(torrent: Torrent) -> None:
    """Wait until no peer is connected."""
    await until(lambda: not any(peer.connected for peer in torrent.traffic().peers))


@pytest.mark.parametrize(
    "client",
    [
        # Half a minute of aria2's time, and five minutes of transmission's.
        pytest.param(partial(aria2, hurried(30)), id="aria2"),
        pytest.param(partial(transmission, hurried(150)), id="transmission"),
    ],
)
async def test_a_pause(client: Callable[[], AbstractContextManager[Client]], nodes: Nodes) -> None:
    """Each read finds no peer connected, and is answered all the same."""
    async with nodes.open("1") as publisher:
        seeded = await publisher.seed(nodes.source("1", CONTENT).staging)
    content = Content.of(nodes.root / "1" / "torrents", seeded.info_hash)
    with client() as foreign, trio.fail_after(BOUND):
        await trio.to_thread.run_sync(seeding, foreign, content)
        async with nodes.open("2") as reader:
            torrent = await reader.add(content.info_hash, peers=[foreign.address])
            for piece in (7, 11, 40):
                got = await torrent.read(piece * PIECE, PIECE)
                assert got == CONTENT[piece * PIECE :][:PIECE]
                await gone(torrent)
            await fetch_all(torrent)


async def test_a_reader_that_wants_nothing_yet(nodes: Nodes) -> None:
    """libtorrent as it comes hangs up at once on whom wants nothing when they meet."""
    async with nodes.open("1") as publisher:
        seeded = await publisher.seed(nodes.source("1", CONTENT).staging)
    content = Content.of(nodes.root / "1" / "torrents", seeded.info_hash)
    with libtorrent() as foreign, trio.fail_after(BOUND):
        await trio.to_thread.run_sync(seeding, foreign, content)
        for piece in (3, 5):
            async with nodes.open("2") as reader:
                torrent = await reader.add(content.info_hash, peers=[foreign.address])
                await torrent.metadata()
                await trio.testing.wait_all_tasks_blocked(0.1)
                got = await torrent.read(piece * PIECE, PIECE)
                assert got == CONTENT[piece * PIECE :][:PIECE]
