"""Reads that go to an HTTP server by their exact bytes, and when they do not."""

from __future__ import annotations

import pytest

from p2pcloop.errors import UnreachableError
from tests.decisions.sim import BACKGROUND, DEMAND, INDEX, PIECE, HangError, World

HERE = range(5 * PIECE + 10, 5 * PIECE + 1010)


async def test_a_miss_is_asked_of_a_mirror_by_its_exact_bytes(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True) as it:
        task = it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        assert task.data == it.content[HERE.start : HERE.stop]
        assert it.mirror.asked == [HERE]
        assert it.swarm.log == []


async def test_it_may_lie_in_both_files_of_a_layer(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        task = it.read(INDEX - 5, 10)
        await world.advance(0.1)
        assert task.data == it.content[INDEX - 5 : INDEX + 5]
        assert it.mirror.asked == [range(INDEX - 5, INDEX), range(INDEX, INDEX + 5)]


async def test_bytes_that_came_once_are_not_asked_for_again(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        again = it.read(HERE.start + 5, 10)
        await world.advance()
        assert again.data == it.content[HERE.start + 5 :][:10]
        assert it.mirror.asked == [HERE]


async def test_of_a_range_that_is_here_in_part_the_rest_is_asked_for(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        it.read(HERE.start - 100, 1200)
        await world.advance(0.1)
        assert it.mirror.asked[1:] == [
            range(HERE.start - 100, HERE.start),
            range(HERE.stop, HERE.stop + 100),
        ]


async def test_two_readers_of_a_range_share_a_request(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        first = it.read(HERE.start, len(HERE))
        await world.advance()
        second = it.read(HERE.start + 5, 10)
        await world.advance(0.1)
        assert first.done
        assert second.data == it.content[HERE.start + 5 :][:10]
        assert it.mirror.asked == [HERE]


async def test_a_range_beside_a_piece_that_is_here_comes_by_its_pieces(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True) as it:
        it.swarm.connected()
        it.expect([5])
        await world.advance()
        it.swarm.send(5)
        await world.advance(2)
        it.read(6 * PIECE - 100, 200)
        await world.advance()
        assert it.mirror.asked == [range(6 * PIECE, 7 * PIECE)]


async def test_a_piece_that_a_peer_was_asked_for_is_awaited(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True) as it:
        it.swarm.connected()
        it.expect([5])
        await world.advance()
        task = it.read(HERE.start, len(HERE))
        await world.advance()
        assert it.mirror.asked == []
        assert it.swarm.wanted == {5: DEMAND}
        it.swarm.send(5)
        await world.advance()
        assert task.done


async def test_a_piece_of_a_stream_that_no_peer_was_asked_for_comes_from_a_mirror(
    world: World,
) -> None:
    async with world.torrent(mirrors=1) as it:
        it.expect([5])  # peers are told, but none is connected
        await world.advance()
        task = it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        assert task.done
        assert it.mirror.asked == [range(5 * PIECE, 6 * PIECE)]


async def test_a_mirror_that_is_silent_gives_way_to_peers_after_a_second(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True) as it:
        it.mirror.fault = HangError()
        it.read(HERE.start, len(HERE))
        await world.advance(0.9)
        assert it.swarm.wanted == {}
        await world.advance(0.2)
        assert it.swarm.wanted == {5: DEMAND}


async def test_while_a_mirror_sends_something_it_is_not_given_up(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True) as it:
        it.mirror.delay = 3.0
        task = it.read(HERE.start, len(HERE))
        for _ in range(4):
            await world.advance(0.8)
            it.mirror.wire.received += 1
        assert it.swarm.wanted == {}
        assert task.done


async def test_after_a_failure_peers_alone_are_asked_for_ten_seconds(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.swarm.connected()
        it.mirror.fault = UnreachableError("it is down")
        it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        assert it.swarm.wanted == {5: DEMAND}
        it.swarm.send(5)
        it.mirror.fault = None
        await world.advance(9)
        it.read_piece(30)
        await world.advance(0.1)
        assert it.swarm.wanted == {30: DEMAND}
        it.swarm.send(30)
        assert it.mirror.asked == [HERE]
        await world.advance(1)
        it.read_piece(40)
        await world.advance(0.1)
        assert it.mirror.asked[1:] == [range(40 * PIECE + 10, 40 * PIECE + 110)]


async def test_without_peers_a_mirror_that_fails_is_asked_again(world: World) -> None:
    async with world.torrent(mirrors=1, named=False) as it:
        it.mirror.fault = UnreachableError("it is down")
        task = it.read_piece(30)
        await world.advance(0.5)
        it.mirror.fault = None
        await world.advance(2)
        assert task.done


async def test_wrong_bytes_are_asked_for_anew_and_their_mirror_no_more(world: World) -> None:
    async with world.torrent(mirrors=2) as it:
        liar, honest = it.mirrors
        liar.lies = True
        task = it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        assert task.data == bytes(len(HERE))  # its reader compares it
        again = it.read(HERE.start, len(HERE), heal=True)
        await world.advance(0.1)
        assert again.data == it.content[HERE.start : HERE.stop]
        it.read_piece(40)
        await world.advance(0.1)
        assert len(liar.asked) == 1
        assert len(honest.asked) == 2


async def test_a_mirror_with_wrong_bytes_is_known_anew_after_ten_minutes(world: World) -> None:
    """A command that names it does not have it lie once more: it may have been mended since."""
    async with world.torrent(mirrors=1, peer=True) as it:
        it.mirror.lies = True
        it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        it.read(HERE.start, len(HERE), heal=True)
        await world.advance(0.1)
        for minutes, again in ((9, False), (2, True)):
            await world.advance(60 * minutes)
            it.name_servers()
            it.read_piece(40)
            await world.advance(0.1)
            assert (len(it.mirror.asked) > 1) is again


async def test_a_guess_is_dear_where_it_keeps_the_link_busy_for_12_ms(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        assert it.is_cheap(1 << 20)  # no rate is known
        it.mirror.speed = 1e6
        assert it.is_cheap(12_000)
        assert not it.is_cheap(12_001)


async def test_a_guess_comes_by_its_exact_bytes_and_is_kept(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.guess(HERE.start, len(HERE))
        await world.advance(0.1)
        task = it.read(HERE.start, len(HERE))
        await world.advance()
        assert task.done
        assert it.mirror.asked == [HERE]


async def test_of_a_piece_that_is_here_in_part_the_rest_alone_is_asked_for(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True) as it:
        it.swarm.connected()
        it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        it.expect([5, 6])
        await world.advance()
        assert it.mirror.asked[1:] == [range(5 * PIECE, HERE.start)]
        assert list(it.swarm.wanted) == [6]
        await world.advance(0.1)
        assert it.mirror.asked[2:] == [range(HERE.stop, 6 * PIECE)]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_fetch_asks_for_no_byte_that_is_provisional(world: World, whole: bool) -> None:
    async with world.torrent(12, mirrors=1, peer=whole) as it:
        it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        task = it.fetch()
        for _ in range(12):
            await world.advance(0.5)
            if whole:
                it.swarm.send(*it.swarm.wanted)
        await world.advance(2)
        assert task.done
        assert it.torrent.store.received.again == 0
        assert (5 in it.swarm.order(BACKGROUND)) is not whole or not whole


async def test_where_provisional_bytes_are_wrong_they_alone_are_asked_for_again(
    world: World,
) -> None:
    async with world.torrent(mirrors=1) as it:
        it.mirror.lies = True
        it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        it.mirror.lies = False
        it.expect([5])
        await world.advance(0.2)
        assert it.mirror.asked[1:] == [
            range(5 * PIECE, HERE.start),
            range(HERE.stop, 6 * PIECE),
            HERE,
        ]
        await world.advance(2)
        assert it.torrent.store.stored.have.has(5, 5)


async def test_before_the_metadata_a_mirror_is_asked_for_exact_bytes_first(world: World) -> None:
    async with world.torrent(mirrors=1, known=False) as it:
        task = it.read(INDEX + 100, 1000)
        await world.advance(0.05)
        assert task.data == it.content[INDEX + 100 :][:1000]
        await world.advance(2.9)
        it.mirror.delay = 0.3
        it.read(INDEX + 2000, 300)
        await world.advance(3.25)
        assert it.mirror.infos == [], "what a reader wants goes first"
        await world.advance(0.5)
        assert len(it.mirror.infos) == 1
        assert it.torrent.layout is not None


async def test_the_metadata_comes_though_readers_wait_on_and_on(world: World) -> None:
    async with world.torrent(mirrors=1, known=False) as it:
        it.read(INDEX + 100, 1000)
        await world.advance(0.05)
        it.mirror.delay = 0.5
        for number in range(59):
            it.read(INDEX + 2000 * number, 2000)
            await world.advance(0.5)
        assert it.mirror.infos == []
        await world.advance(1)
        assert len(it.mirror.infos) == 1


async def test_before_the_metadata_the_next_mirror_is_asked_after_a_second(world: World) -> None:
    async with world.torrent(mirrors=2, known=False) as it:
        mute, other = it.mirrors
        mute.fault = HangError()
        task = it.read(INDEX + 100, 1000)
        await world.advance(0.9)
        assert other.asked == []
        await world.advance(0.2)
        assert task.data == it.content[INDEX + 100 :][:1000]
        assert len(mute.asked) == len(other.asked) == 1


async def test_before_the_metadata_the_swarm_is_tried_after_three_seconds(world: World) -> None:
    async with world.torrent(mirrors=1, known=False) as it:
        it.mirror.fault = HangError()
        it.read(INDEX + 100, 1000)
        await world.advance(2.9)
        assert it.swarm.joined == 0
        await world.advance(1.3)
        assert it.swarm.joined == 1
        assert it.waits()
