"""A peer that has everything and sends nothing does not stall a reader who has another source."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from p2pcloopd.engine.disk.record import Sources
from p2pcloopd.engine.fetch.backfill import fetch_all
from tests.support.engines import Nodes
from tests.support.mute_peer import Manner, mute_peer
from tests.support.waiting import BOUND, until

PIECE = 1 << 14
PIECES = 70
CONTENT = random.Random(4).randbytes(PIECES * PIECE - 77)


@pytest.mark.parametrize("manner", Manner)
async def test_another_source_is_used(manner: Manner, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    with mute_peer(manner, PIECES) as mute:
        async with nodes.open("1") as seeder:
            seeded = await seeder.seed(nodes.source("1", CONTENT).staging)
            async with nodes.open("2") as reader:
                torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
                await torrent.metadata()
        # Only the mute one is there when a piece is wanted; then there is.
        async with nodes.open("2") as reader, trio.open_nursery() as nursery:
            torrent = await reader.add(seeded.info_hash, peers=[mute.address])
            got: dict[int, bytes] = {}

            async def read(piece: int) -> None:
                got[piece] = await torrent.read(piece * PIECE, PIECE)

            nursery.start_soon(read, 3)
            asked = (lambda: mute.requests) if manner is Manner.MUTE else (lambda: mute.connections)
            await until(asked)
            async with nodes.open("3") as seeder:
                await seeder.seed(nodes.source("3", CONTENT).staging)
                with trio.fail_after(BOUND):
                    await torrent.add_sources(Sources(peers=tuple(seeder.listen_ports)))
                    for piece in random.Random(5).sample(range(PIECES - 1), 12):
                        await read(piece)
                    await until(lambda: 3 in got)
                    await fetch_all(torrent)
            assert got == {piece: CONTENT[piece * PIECE :][:PIECE] for piece in got}


async def test_a_peer_that_hangs_up_is_tried_again_but_not_pestered(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    with mute_peer(Manner.HANGS_UP, PIECES) as mute:
        async with nodes.open("2") as reader, trio.open_nursery() as nursery:
            torrent = await reader.add(bytes(range(20)), peers=[mute.address])
            nursery.start_soon(torrent.metadata)
            with trio.fail_after(BOUND):
                await until(lambda: mute.connections > 2)
            before, begun = mute.connections, trio.current_time()
            await trio.sleep(1)  # a thousand times over loopback, if nothing held it back
            assert mute.connections - before < 5 * (trio.current_time() - begun)
            nursery.cancel_scope.cancel()
