"""What a peer has sent is here, also while libtorrent's news of it have not come yet: no server is
asked for it, whatever asks. So it is with what a peer is about to send."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.decisions.sim import PIECE, Run, Task, World

JOBS: dict[str, Callable[[Run], object]] = {
    "a stream": lambda it: it.expect(range(9)),
    "fetch": lambda it: it.fetch(),
    "fill": lambda it: it.fill(),
}

READS: dict[str, Callable[[Run, int], Task]] = {
    "inside of it": lambda it, piece: it.read(piece * PIECE + 10, 100),
    "all of it": lambda it, piece: it.read(piece * PIECE, PIECE),
    "ahead": lambda it, piece: it.guess(piece * PIECE + 10, 100),
}

jobs = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
reads = pytest.mark.parametrize("read", READS.values(), ids=READS)


async def is_read(world: World, it: Run, task: Task, piece: int) -> None:
    """A read ends with the bytes of a piece, and no server was asked."""
    await world.advance()
    assert it.mirror.asked == []
    it.swarm.late = False
    it.swarm.hear()
    await world.advance()
    assert task.data
    assert task.data in it.content[piece * PIECE :][:PIECE]
    assert it.mirror.asked == []
    assert it.torrent.store.received.again == 0


@asynccontextmanager
async def asked(world: World, job: Callable[[Run], object]) -> AsyncIterator[tuple[Run, int]]:
    """A job that asks a peer for pieces, and the first of them."""
    async with world.torrent(mirrors=1, peer=True) as it:
        it.swarm.connected()
        job(it)
        await world.advance()
        yield it, min(it.swarm.wanted)


@jobs
@reads
async def test_a_read_of_what_a_peer_has_sent(
    world: World, job: Callable[[Run], object], read: Callable[[Run, int], Task]
) -> None:
    async with asked(world, job) as (it, piece):
        it.swarm.late = True
        it.swarm.send(piece)
        await is_read(world, it, read(it, piece), piece)


@jobs
@reads
async def test_a_read_of_what_a_peer_sends_at_the_last_moment(
    world: World, job: Callable[[Run], object], read: Callable[[Run, int], Task]
) -> None:
    """No peer was asked when the read looked, and one has sent it when it is told no more."""
    async with asked(world, job) as (it, piece):
        it.swarm.late, it.swarm.quick = True, {piece}
        task = read(it, piece)
        await world.advance()
        if it.swarm.quick:  # it was left to the peer
            it.swarm.quick.clear()
            it.swarm.send(piece)
        await is_read(world, it, task, piece)


@reads
async def test_a_read_of_what_a_peer_sends_although_it_is_wanted_no_more(
    world: World, read: Callable[[Run, int], Task]
) -> None:
    async with world.torrent(mirrors=1, peer=True, keeps=True) as it:
        it.swarm.connected()
        job = it.fetch()
        await world.advance()
        piece = min(it.swarm.wanted)
        job.cancel()
        await world.advance()
        assert it.swarm.wanted == {}
        task = read(it, piece)
        await world.advance()
        assert it.mirror.asked == []
        it.swarm.send(piece)
        await is_read(world, it, task, piece)


async def test_a_plan_for_the_rest_of_what_a_peer_has_sent(world: World) -> None:
    """Servers were asked for nothing for a while, so a peer was told of a piece that is here in
    part."""
    async with world.torrent(mirrors=1, peer=True) as it:
        it.swarm.connected()
        it.read_piece(5)
        await world.advance(0.1)
        asked = [range(5 * PIECE + 10, 5 * PIECE + 110)]
        assert it.mirror.asked == asked
        it.no_exact_ranges()
        it.fetch()
        await world.advance()
        while 5 not in it.swarm.wanted:
            it.swarm.send(*it.swarm.wanted)
            await world.advance()
        it.swarm.late = True
        it.swarm.send(5)
        await it.keep_sending(it.torrent.tuning.exact_cooldown + 1)
        assert it.mirror.asked == asked
        assert it.torrent.store.has(5)


async def test_a_plan_for_what_a_peer_sends_at_the_last_moment(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True) as it:
        it.swarm.connected()
        it.expect(range(5))
        await world.advance()
        it.swarm.late, it.swarm.quick = True, {3, 4}
        task = it.read(3 * PIECE, PIECE)
        await world.advance(0.1)
        assert it.mirror.asked == []
        it.swarm.late = False
        it.swarm.hear()
        await world.advance()
        assert task.data == it.content[3 * PIECE :][:PIECE]
        assert it.torrent.store.received.again == 0
