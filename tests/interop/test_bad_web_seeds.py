"""A web seed (BEP 19) that misbehaves costs neither a right byte nor the use of other sources."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from p2pcloopd.engine.fill import fetch_all
from p2pcloopd.engine.record import Sources
from tests.support.engines import Nodes, until
from tests.support.static_server import Fault, misbehaving

PIECE = 1 << 14
CONTENT = random.Random(6).randbytes(60 * PIECE - 5)
PATIENCE = 30

FAULTS = (
    Fault.NOT_FOUND,
    Fault.IGNORES_RANGE,
    Fault.HALF_RANGE,
    Fault.CUT_OFF,
    Fault.STALLS,
    Fault.WRONG_BYTES,
    Fault.TOO_MUCH,
)
"""Not `LONG_HEADER`: libtorrent 2.1.1 has no limit there, and all else waits while it reads."""


@pytest.mark.parametrize("fault", FAULTS)
async def test_another_source_is_used(fault: Fault, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", CONTENT).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        await torrent.metadata()
    files = nodes.files("1", seeded.info_hash).parent
    with misbehaving(files, fault) as web, trio.fail_after(PATIENCE):
        async with nodes.open("2") as reader, trio.open_nursery() as nursery:
            torrent = await reader.add(seeded.info_hash, web_seeds=[web.url])
            got: dict[int, bytes] = {}

            async def read(piece: int) -> None:
                got[piece] = await torrent.read(piece * PIECE, PIECE)

            nursery.start_soon(read, 7)
            await until(lambda: web.requests)
            async with nodes.open("1") as seeder:
                await seeder.restore()
                await torrent.add_sources(Sources(peers=tuple(seeder.listen_ports)))
                for piece in random.Random(5).sample(range(59), 12):
                    await read(piece)
                await fetch_all(torrent)
                await until(lambda: 7 in got)
            assert got == {piece: CONTENT[piece * PIECE :][:PIECE] for piece in got}
