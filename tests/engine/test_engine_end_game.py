"""A block is asked of one peer, and of another one where that peer does not answer."""

from __future__ import annotations

import random

import pytest
import trio

from p2pcloopd.engine.bt import settings
from tests.support.engines import Nodes
from tests.support.mute_peer import Manner, mute_peer
from tests.support.waiting import BOUND

PIECE = 16384
PIECES = 400
CONTENT = random.Random(9).randbytes(PIECES * PIECE)


async def test_two_seeders_send_nothing_twice(nodes: Nodes) -> None:
    async with nodes.open("1") as one, nodes.open("2") as reader, nodes.open("3") as two:
        seeded = await one.seed(nodes.source("1", CONTENT).staging)
        await two.seed(nodes.source("3", CONTENT).staging)
        addresses = [*one.listen_ports, *two.listen_ports]
        torrent = await reader.add(seeded.info_hash, peers=addresses)
        with trio.fail_after(BOUND):
            await torrent.metadata()
            await torrent.read(0, 1)
            await torrent.save()
            before = (await reader.statistics()).torrents[0].traffic
            at_first = torrent.have_bytes
            while sum(peer.connected for peer in before.peers) < 2:
                await trio.sleep(0.01)
                before = (await reader.statistics()).torrents[0].traffic
            order = random.Random(1).sample(range(1, PIECES // 4), 90)
            for number, place in enumerate(order):
                offset, length = place * 4 * PIECE, PIECE if number % 3 else 4 * PIECE
                assert await torrent.read(offset, length) == CONTENT[offset:][:length]
            await torrent.save()
            after = (await reader.statistics()).torrents[0].traffic
    received = after.payload_received - before.payload_received
    assert received <= 1.03 * (torrent.have_bytes - at_first)


async def test_a_mute_peer_holds_up_few_reads(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for timeout in ("piece_timeout", "request_timeout"):  # libtorrent's own way out
        monkeypatch.setitem(settings._DEMAND, timeout, int(10 * BOUND))
    with mute_peer(Manner.MUTE, PIECES) as mute:
        async with nodes.open("1") as seeder:
            seeded = await seeder.seed(nodes.source("1", CONTENT).staging)
            async with nodes.open("2") as reader:
                torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
                await torrent.metadata()
                await torrent.read(0, 1)
                await torrent.save()
            # What is here rules the end-game out from the beginning.
            async with nodes.open("2") as reader:
                addresses = [mute.address, *seeder.listen_ports]
                torrent = await reader.add(seeded.info_hash, peers=addresses)
                with trio.fail_after(BOUND):
                    for place in random.Random(2).sample(range(4, PIECES - 4), 60):
                        offset = place * PIECE
                        assert await torrent.read(offset, 1) == CONTENT[offset : offset + 1]
                assert mute.requests
