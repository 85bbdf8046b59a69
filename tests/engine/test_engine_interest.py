"""Where only foreign clients can be asked, a node stays interested while it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from p2pcloopd.engine.bt.session_swarm import SessionSwarm
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes
from tests.support.fake_servers import RangeServer
from tests.support.waiting import BOUND, until

PIECE = 1 << 14


@asynccontextmanager
async def reading(nodes: Nodes, content: bytes, tuning: Tuning = TUNING) -> AsyncIterator[Torrent]:
    async with nodes.open("1") as seeder, nodes.open("2", tuning=tuning) as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            yield torrent


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own nodes pass for foreign clients."""
    monkeypatch.setattr(SessionSwarm, "foreign", lambda _: True)


async def test_of_nodes_of_ours_what_is_read_is_asked_for(nodes: Nodes, content: bytes) -> None:
    async with reading(nodes, content) as torrent:
        await torrent.read(50 * PIECE, 1)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert torrent.have_bytes == PIECE


@pytest.mark.usefixtures("foreign")
async def test_a_small_torrent_is_asked_for_whole(nodes: Nodes, content: bytes) -> None:
    async with reading(nodes, content) as torrent:
        await torrent.read(50 * PIECE, 1)
        await until(lambda: torrent.have_bytes == len(content))


@pytest.mark.usefixtures("foreign")
async def test_of_a_larger_one_a_window_from_what_was_read_on_and_not_for_long(
    nodes: Nodes, content: bytes
) -> None:
    async with reading(nodes, content, replace(TUNING, small_torrent=0)) as torrent:
        await torrent.read(60 * PIECE, 1)
        await until(lambda: all(map(torrent.store.has, range(60, 70))))
        await until(lambda: torrent.have_bytes == len(content))


@pytest.mark.usefixtures("foreign")
async def test_interest_ends_some_time_after_the_last_read(nodes: Nodes, content: bytes) -> None:
    tuning = replace(TUNING, small_torrent=0, interest_linger=0)
    async with reading(nodes, content, tuning) as torrent:
        await torrent.read(50 * PIECE, 1)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert torrent.have_bytes == PIECE


@pytest.mark.usefixtures("foreign")
async def test_where_a_server_can_be_asked_there_is_no_need(nodes: Nodes, content: bytes) -> None:
    async def ask(offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return content[offset : offset + length]

    async with reading(nodes, content) as torrent:
        await torrent.metadata()
        torrent.servers = RangeServer(ask)
        await torrent.read(50 * PIECE, 1)
        await until(lambda: torrent.have_bytes == PIECE)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert torrent.have_bytes == PIECE
