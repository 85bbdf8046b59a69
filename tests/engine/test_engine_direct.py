"""What a reader waits for, asked of a server by its exact range."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel

from p2pcloopd.engine import direct
from p2pcloopd.engine.direct import Ask
from p2pcloopd.engine.engine import Engine
from p2pcloopd.engine.torrent import Torrent
from tests.support.engines import Nodes, until

PIECE = 1 << 14
PATIENCE = 30


@asynccontextmanager
async def reading(nodes: Nodes, content: bytes, ask: Ask) -> AsyncIterator[tuple[Engine, Torrent]]:
    """A node that knows a seeder and the metadata, and asks `ask`, too."""
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(PATIENCE):
            await torrent.metadata()
            torrent.direct.ask = ask
            yield reader, torrent


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
    async with reading(nodes, content, serving(content, asked)) as (reader, torrent):
        data = await torrent.read(3 * PIECE + 5, 2 * PIECE)
        assert data == content[3 * PIECE + 5 :][: 2 * PIECE]
        assert asked == [(3 * PIECE, 3 * PIECE)]
        assert await torrent.read(len(content) - 3, 3) == content[-3:]
        assert asked[1:] == [(len(content) // PIECE * PIECE, len(content) % PIECE)]
        await until(lambda: torrent.have_bytes == 3 * PIECE + len(content) % PIECE)
        await torrent.save()
        assert torrent.transfer.stored.has(3 * PIECE, 3 * PIECE)
        assert await torrent.read(4 * PIECE, 10) == content[4 * PIECE :][:10]
        assert len(asked) == 2
        assert (await reader.statistics()).torrents[0].traffic.payload_received == 0


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


async def test_who_does_not_answer_keeps_no_reader_waiting(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "HEDGE_SECONDS", 0.05)

    async def never(_offset: int, _length: int) -> None:
        await trio.sleep_forever()

    async with reading(nodes, content, never) as (_, torrent):
        assert await torrent.read(PIECE, 9) == content[PIECE : PIECE + 9]


async def test_of_pieces_that_are_known_in_part_the_rest_is_asked_for(
    nodes: Nodes, content: bytes
) -> None:
    asked: list[tuple[int, int]] = []
    async with reading(nodes, content, serving(content, asked)) as (_, torrent):
        ranges = [(4 * PIECE - 7, 100), (5 * PIECE, PIECE), (6 * PIECE - 3, 50), (9 * PIECE, 9)]
        known = {at: content[at : at + size] for at, size in ranges}
        assert await torrent.direct.complete([4, 5, 8], known)
        await until(lambda: torrent.have_bytes == 3 * PIECE)
        assert asked == [(4 * PIECE + 93, PIECE - 93), (8 * PIECE, PIECE)]
        assert not await torrent.direct.complete([20], {20 * PIECE: b"wrong"})
        assert torrent.have_bytes == 3 * PIECE


async def test_a_range_suits_where_none_of_its_pieces_is_here_or_wanted(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(nodes, content, serving(content, [])) as (_, torrent):
        direct = torrent.direct
        assert direct.suits(PIECE - 1, 2)
        assert not direct.suits(len(content) - 1, 2)
        await torrent.read(PIECE, 1)
        await until(lambda: not direct.suits(PIECE - 1, 2))
        assert direct.suits(PIECE - 1, 1)
        torrent.transfer.crowd = 1
        assert not direct.suits(PIECE - 1, 1)
        # A piece that is large for so few is not brought for one miss.
        monkeypatch.setattr("p2pcloopd.engine.direct.MISS", PIECE // 4)
        assert direct.suits(PIECE - 1, 1)
        torrent.transfer.crowd = 3
        assert not direct.suits(PIECE - 1, 1)


async def test_in_a_crowd_the_swarm_is_asked(nodes: Nodes, content: bytes) -> None:
    asked: list[tuple[int, int]] = []
    async with reading(nodes, content, serving(content, asked)) as (_, torrent):
        torrent.transfer.crowd = 1
        assert await torrent.read(PIECE, 9, ahead=False) == content[PIECE : PIECE + 9]
        assert not asked


def test_runs_are_of_pieces_side_by_side_and_not_too_long() -> None:
    runs = list(direct._runs([7, 1, 2, 3, 9, 4, 8], 3))
    assert runs == [range(1, 4), range(4, 5), range(7, 10)]
