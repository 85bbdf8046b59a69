"""Who is blamed for wrong bytes where several peers share an address, and for how long."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pcloop.store.have import HaveFile
from p2pcloopd.engine.bt import settings
from p2pcloopd.engine.disk import content as content_module
from p2pcloopd.engine.disk.record import Sources
from p2pcloopd.engine.engine import Engine
from p2pcloopd.engine.fetch.tuning import TUNING
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.engine.verify.audit import Audit
from tests.support.engines import Nodes, open_at
from tests.support.waiting import BOUND, until

BLOCK_SIZE = 16384


@pytest.fixture(autouse=True)
def _liars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that send what they have without comparing it with its hashes."""
    monkeypatch.setattr(HaveFile, "complete", lambda _have: False)
    monkeypatch.setattr(Audit, "sent", lambda _audit, _piece: None)


def liar_store(nodes: Nodes, tmp_path: Path, info_hash: bytes) -> Path:
    """A store with the metadata of node 1's torrent and zeros for content, said to be whole."""
    store = tmp_path / "liar"
    shutil.copytree(nodes.directory("1", info_hash), store / info_hash.hex())
    for path in (store / info_hash.hex() / "data").rglob("*"):
        if path.is_file():
            size = path.stat().st_size
            path.unlink()  # the pack is a link to the honest peer's
            path.write_bytes(bytes(size))
    return store


async def add_by(reader: Engine, honest: Engine, liar: Engine, *, honest_first: bool) -> Torrent:
    """The torrent in the reader, once it is connected to both."""
    peers = [*honest.listen_ports, *liar.listen_ports]
    info_hash = honest.torrents[0].info_hash
    torrent = await reader.add(info_hash, peers=peers if honest_first else peers[::-1])
    with trio.fail_after(BOUND):
        await until(lambda: all(peer.connected for peer in torrent.peers.tried()))
    return torrent


@pytest.mark.parametrize("honest_first", [True, False])
@pytest.mark.parametrize("liar_host", ["127.0.0.1", "127.0.0.3"])
@pytest.mark.parametrize("blocks", [1, 4])
async def test_only_the_liar_is_banned(
    nodes: Nodes,
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    honest_first: bool,
    liar_host: str,
    blocks: int,
) -> None:
    """Left alone, libtorrent bans the first peer of the liar's host, and all who share pieces."""
    monkeypatch.setattr(content_module, "piece_length_for", lambda _total: blocks * BLOCK_SIZE)
    async with nodes.open("1") as honest, nodes.open("2") as reader:
        seeded = await honest.seed(nodes.source("1", content).staging)
        store = liar_store(nodes, tmp_path, seeded.info_hash)
        async with open_at(store, liar_host) as liar:
            await liar.restore()
            torrent = await add_by(reader, honest, liar, honest_first=honest_first)
            with trio.fail_after(BOUND):
                assert await torrent.read(0, len(content)) == content
            assert liar.listen_ports[0] in torrent.peers.received
            assert honest.listen_ports[0] not in torrent.peers.banned


async def test_a_liar_that_comes_back(
    nodes: Nodes, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It connects to us, from another port; libtorrent forgets the ban then, and blames others."""
    async with nodes.open("1") as honest, nodes.open("2") as reader:
        seeded = await honest.seed(nodes.source("1", content).staging)
        store = liar_store(nodes, tmp_path, seeded.info_hash)
        half = len(content) // 2
        async with open_at(store, "127.0.0.1") as liar:
            await liar.restore()
            torrent = await add_by(reader, honest, liar, honest_first=False)
            [address] = liar.listen_ports
            with trio.fail_after(BOUND):
                assert await torrent.read(0, half) == content[:half]
                await until(lambda: torrent.peers.banned)
        monkeypatch.setitem(settings._PEERS, "seeding_outgoing_connections", True)
        async with open_at(store, *address) as liar:
            await liar.restore()
            [lying] = liar.torrents
            with trio.fail_after(BOUND):
                await lying.add_sources(Sources(peers=tuple(reader.listen_ports)))
                await until(lambda: lying.peers.tried()[0].connected)
                assert await torrent.read(half, half) == content[half : 2 * half]
            assert torrent.peers.banned == {address}


async def test_a_ban_ends_when_nobody_else_has_it(
    nodes: Nodes, content: bytes, tmp_path: Path
) -> None:
    """The one seed has lost its data; then they are put back."""
    soon = replace(TUNING, ban=0.2)
    async with nodes.open("1") as honest:
        seeded = await honest.seed(nodes.source("1", content).staging)
    store = liar_store(nodes, tmp_path, seeded.info_hash)
    async with open_at(store, "127.0.0.1") as seeder, nodes.open("2", tuning=soon) as reader:
        await seeder.restore()
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(torrent.read, 0, len(content))
                await until(lambda: torrent.peers.banned)
                for name in ("index", "pack"):
                    path = Path(seeded.info_hash.hex(), "data", "image", name)
                    (store / path).write_bytes((tmp_path / "1" / "torrents" / path).read_bytes())
            assert await torrent.read(0, len(content)) == content
        assert not torrent.peers.banned
