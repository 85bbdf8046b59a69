"""What a reader waits for, asked of a server by its exact range."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.lowlevel
import trio.testing

from p2pcloopd.engine.engine import Engine
from p2pcloopd.engine.fetch.backfill import fetch_all, fill
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.engine.fetch.wants import side_by_side
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes
from tests.support.fake_servers import Ask, RangeServer
from tests.support.waiting import BOUND, until

PIECE = 1 << 14


@asynccontextmanager
async def reading(
    nodes: Nodes, content: bytes, ask: Ask, tuning: Tuning = TUNING
) -> AsyncIterator[tuple[Engine, Torrent]]:
    """A node that knows a seeder and the metadata, and asks `ask`, too."""
    async with nodes.open("1") as seeder, nodes.open("2", tuning=tuning) as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            await torrent.metadata()
            torrent.servers = RangeServer(ask)
            yield reader, torrent


def by_peers(torrent: Torrent) -> int:
    """Bytes of content that peers sent."""
    return sum(peer.received for peer in torrent.traffic().peers)


def serving(content: bytes, asked: list[tuple[int, int]]) -> Ask:
    async def ask(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        await trio.lowlevel.checkpoint()
        return content[offset : offset + length]

    return ask


async def test_whole_pieces_are_asked_for_and_nothing_of_the_swarm(
    nodes: Nodes, content: bytes
) -> None:
    asked: list[tuple[int, int]] = []
    async with reading(nodes, content, serving(content, asked)) as (_, torrent):
        data = await torrent.read(3 * PIECE + 5, 2 * PIECE)
        assert data == content[3 * PIECE + 5 :][: 2 * PIECE]
        assert asked == [(3 * PIECE, 3 * PIECE)]
        assert await torrent.read(len(content) - 3, 3) == content[-3:]
        assert asked[1:] == [(len(content) // PIECE * PIECE, len(content) % PIECE)]
        await until(lambda: torrent.have_bytes == 3 * PIECE + len(content) % PIECE)
        await torrent.save()
        assert torrent.store.stored.has(3 * PIECE, 3 * PIECE)
        assert await torrent.read(4 * PIECE, 10) == content[4 * PIECE :][:10]
        assert len(asked) == 2
        assert by_peers(torrent) == 0


async def _nothing(_offset: int, _length: int) -> None:
    return None


async def _wrong(_offset: int, length: int) -> bytes:
    return b"w" * length


async def _cut(_offset: int, length: int) -> bytes:
    return b"s" * (length - 1)


@pytest.mark.parametrize("ask", [_nothing, _wrong, _cut])
async def test_who_has_nothing_or_lies_is_not_asked_again_for_a_while(
    nodes: Nodes, content: bytes, ask: Callable[[int, int], Awaitable[bytes | None]]
) -> None:
    asked: list[int] = []

    async def note(offset: int, length: int) -> bytes | None:
        asked.append(offset)
        return await ask(offset, length)

    async with reading(nodes, content, note) as (_, torrent):
        for place in (5, 50, 90):
            offset = place * PIECE
            assert await torrent.read(offset, 9) == content[offset : offset + 9]
        assert asked == [5 * PIECE]


async def test_who_does_not_answer_keeps_no_reader_waiting(nodes: Nodes, content: bytes) -> None:
    async def never(_offset: int, _length: int) -> None:
        await trio.sleep_forever()

    async with reading(nodes, content, never, replace(TUNING, exact_hedge=0.05)) as (_, torrent):
        assert await torrent.read(PIECE, 9) == content[PIECE : PIECE + 9]


async def test_of_pieces_that_are_here_in_part_the_rest_is_asked_for(
    nodes: Nodes, content: bytes
) -> None:
    asked: list[tuple[int, int]] = []
    async with reading(nodes, content, serving(content, asked)) as (_, torrent):
        ranges = [(4 * PIECE - 7, 100), (5 * PIECE, PIECE), (6 * PIECE - 3, 50), (9 * PIECE, 9)]
        for at, size in ranges:
            torrent.store.provisional.keep(at, content[at : at + size])
        assert await torrent.read(4 * PIECE, 2 * PIECE) == content[4 * PIECE :][: 2 * PIECE]
        assert asked == [(4 * PIECE + 93, PIECE - 93)]
        assert await torrent.read(8 * PIECE, 1, ahead=True) == content[8 * PIECE :][:1]
        await until(lambda: torrent.have_bytes == 3 * PIECE)
        # Nothing of the last was here: peers give it, as of all that no reader waits for.
        assert (len(asked), by_peers(torrent)) == (1, PIECE)
        assert torrent.store.received.again == 0


@pytest.mark.parametrize("who", ["a reader who waits", "one ahead", "all", "idle time"])
async def test_whoever_wants_a_piece_the_rest_of_it_is_asked_of_a_server(
    nodes: Nodes, content: bytes, who: str
) -> None:
    asked: list[tuple[int, int]] = []
    async with reading(nodes, content, serving(content, asked)) as (_, torrent):
        torrent.store.provisional.keep(3 * PIECE + 100, content[3 * PIECE + 100 :][:PIECE])
        match who:
            case "all":
                await fetch_all(torrent)
            case "idle time":
                await fill(torrent, 0)
            case _:
                await torrent.read(3 * PIECE, 2 * PIECE, ahead=who == "one ahead")
        await until(lambda: {3, 4} <= set(filter(torrent.store.has, range(100))))
        assert asked == [(3 * PIECE, 100), (4 * PIECE + 100, PIECE - 100)]
        received = torrent.store.received
        came = len(content) - PIECE if who in ("all", "idle time") else PIECE
        assert (received.bytes, received.again, received.hedged) == (came, 0, 0)
        assert by_peers(torrent) == came - PIECE


async def test_a_range_that_is_on_its_way_is_waited_for(nodes: Nodes, content: bytes) -> None:
    asked: list[tuple[int, int]] = []
    async with reading(nodes, content, serving(content, asked)) as (_, torrent):
        async with trio.open_nursery() as nursery:
            with torrent.store.provisional.claim(PIECE + 100, 50):
                nursery.start_soon(torrent.read, PIECE, 10)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert asked == []
                torrent.store.provisional.keep(PIECE + 100, content[PIECE + 100 :][:50])
        assert asked == [(PIECE, 100), (PIECE + 150, PIECE - 150)]


@pytest.mark.parametrize("known", ["wrong", "right"])
async def test_what_is_here_and_wrong_is_asked_for_anew_and_nothing_else(
    nodes: Nodes, content: bytes, known: str
) -> None:
    asked: list[tuple[int, int]] = []
    part = (PIECE + 10, 100)
    async with reading(nodes, content, serving(content, asked)) as (_, torrent):
        right = content[part[0] :][: part[1]]
        torrent.store.provisional.keep(part[0], b"w" * part[1] if known == "wrong" else right)
        assert await torrent.read(PIECE, PIECE) == content[PIECE:][:PIECE]
        rest = [(PIECE, 10), (PIECE + 110, PIECE - 110)]
        assert asked == (rest if known == "right" else [*rest, part])


async def test_what_a_peer_was_asked_for_is_not_asked_of_a_server(
    nodes: Nodes, content: bytes
) -> None:
    """A guest that boots while its image is fetched."""
    asked: list[tuple[int, int]] = []
    async with reading(nodes, content, serving(content, asked)) as (_, torrent):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_all, torrent)
            for place in (70, 3, 40):
                data = await torrent.read(place * PIECE + 7, PIECE)
                assert data == content[place * PIECE + 7 :][:PIECE]
        received = torrent.store.received
        assert (received.bytes, received.again, received.hedged) == (len(content), 0, 0)
        assert by_peers(torrent) == len(content) - sum(size for _, size in asked)


def test_runs_are_of_pieces_side_by_side_and_not_too_long() -> None:
    runs = side_by_side([7, 1, 2, 3, 9, 4, 8], 3)
    assert runs == [range(1, 4), range(4, 5), range(7, 10)]
