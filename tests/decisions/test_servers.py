"""Which pieces are asked of web seeds and mirrors, and which of peers."""

from __future__ import annotations

import pytest

from p2pcloop.errors import UnreachableError
from p2pcloopd.http.client import RangesIgnoredError
from tests.decisions.sim import BACKGROUND, DEMAND, PIECE, HangError, World

RANGE = 16
"""Pieces of a range request, where no rate is known: 256 KiB."""


async def test_without_peers_all_comes_from_a_mirror_in_four_ranges_at_once(world: World) -> None:
    async with world.torrent(200, mirrors=1, named=False) as it:
        it.mirror.delay = 1
        task = it.fetch()
        await world.advance()
        assert len(it.mirror.asked) in (1, 2)  # a small window, of which the last piece may be one
        it.mirror.delay = 0.02
        await world.advance(3)
        assert task.done
        assert it.torrent.store.received.again == 0
        assert len(set(it.mirror.asked)) == len(it.mirror.asked)


async def test_a_range_is_what_a_quarter_of_a_second_brings(world: World) -> None:
    async with world.torrent(400, mirrors=1, named=False) as it:
        it.mirror.speed = 8 * RANGE * PIECE
        it.fetch()
        await world.advance(2)
        assert max(map(len, it.mirror.asked)) == 2 * RANGE * PIECE


async def test_what_readers_wait_for_comes_first(world: World) -> None:
    async with world.torrent(mirrors=1, named=False) as it:
        it.no_exact_ranges()  # no exact ranges
        it.mirror.fault = UnreachableError("it is down")
        it.expect(range(20, 40))
        it.fetch()
        await world.advance(0.1)
        it.read_piece(50)
        await world.advance()
        del it.mirror.asked[:]
        it.mirror.fault = None
        await world.advance(5)
        assert it.mirror.asked[0] == range(50 * PIECE, 51 * PIECE)


async def test_peers_that_may_come_have_a_second(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.fetch()
        await world.advance(0.9)
        assert it.mirror.asked == []
        await world.advance(0.2)
        assert len(it.mirror.asked) > 0


async def test_what_is_read_ahead_comes_from_a_mirror_until_the_one_peer_is_connected(
    world: World,
) -> None:
    async with world.torrent(mirrors=1) as it:
        it.mirror.delay = 0.3
        it.expect(range(1, 64))
        await world.advance(0.4)
        first, second = it.mirror.asked
        assert first.start == PIECE
        assert max(len(first), len(second)) == 8 * PIECE
        it.swarm.connected()
        await world.advance(0.4)
        assert len(it.mirror.asked) == 2
        assert len(it.swarm.wanted) == 8


@pytest.mark.parametrize("known", [True, False])
async def test_a_peer_is_connected_to_at_once_when_it_is_asked_for_something(
    world: World, known: bool
) -> None:
    """Also where the metadata came from a mirror, and the swarm is joined only then."""
    async with world.torrent(mirrors=1, known=known) as it:
        it.mirror.delay = 0.1
        it.expect(range(1, 64))
        await world.advance(0.3)
        assert [wanted for wanted in it.swarm.hurried if wanted]
        await world.advance(0.4)
        assert len(it.swarm.hurried) <= 2, "a pause drops what is being connected"


async def test_mirrors_are_asked_at_once_where_no_peer_may_come(world: World) -> None:
    async with world.torrent(mirrors=1, named=False) as it:
        it.fetch()
        await world.advance()
        assert len(it.mirror.asked) > 0


async def test_while_peers_send_mirrors_are_left_alone(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.swarm.connected()
        it.expect(range(64))
        for _ in range(8):
            await world.advance(0.5)
            it.swarm.send(min(it.swarm.wanted))
        assert it.mirror.asked == []


async def test_peers_that_fall_silent_are_helped_by_mirrors(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.swarm.connected()
        it.fetch()
        await world.advance(0.1)
        it.swarm.send(min(it.swarm.wanted))
        await world.advance(0.8)
        assert it.mirror.asked == []
        await world.advance(1.3)
        assert len(it.mirror.asked) > 0


async def test_a_web_seed_brings_half_of_what_is_wanted_next(world: World) -> None:
    async with world.torrent(web_seeds=1) as it:
        it.mirror.delay = 10
        it.swarm.connected()
        it.swarm.trickle()
        it.fetch()
        await world.advance()
        assert len(it.swarm.by_priority(BACKGROUND)) == 5
        assert not it.mirror.pieces.intersection(it.swarm.wanted)


async def test_what_peers_do_not_bring_in_three_seconds_a_web_seed_does(world: World) -> None:
    async with world.torrent(9, web_seeds=1) as it:
        it.swarm.connected()
        it.swarm.trickle()
        it.fetch()
        await world.advance(0.1)
        late = set(it.swarm.wanted)
        for _ in range(6):
            await world.advance(0.6)
            it.swarm.trickle()
        assert late
        assert it.torrent.store.complete()


async def test_peers_are_asked_too_for_what_a_server_does_not_bring_in_two_seconds(
    world: World,
) -> None:
    async with world.torrent(4, mirrors=1) as it:
        it.mirror.fault = HangError()
        it.fetch()
        await world.advance(1.1)
        assert it.mirror.asked
        assert it.swarm.wanted == {}
        it.swarm.connected()
        await world.advance(2.1)
        assert set(it.swarm.wanted) == {0, 1, 2, 3}


async def test_a_server_that_is_down_is_asked_again_when_it_may_be(world: World) -> None:
    async with world.torrent(mirrors=1, named=False) as it:
        it.mirror.fault = UnreachableError("it is down")
        task = it.fetch()
        await world.advance(8)
        times = [round(at - it.mirror.asked_at[0]) for at in it.mirror.asked_at]
        assert sorted(set(times)) == [0, 1, 3, 7]  # a second, then two, then four
        it.mirror.fault = None
        await world.advance(30)
        assert task.done


async def test_pieces_that_no_server_has_are_found_one_by_one_and_left_for_ten_seconds(
    world: World,
) -> None:
    async with world.torrent(24, mirrors=1, named=False) as it:
        it.no_exact_ranges()
        it.mirror.lacks = {2}
        it.expect(range(4))
        await world.advance(1)
        assert [it.torrent.store.has(piece) for piece in range(4)] == [True, True, False, True]
        asked = len(it.mirror.asked)
        await world.advance(8)
        assert len(it.mirror.asked) == asked
        it.mirror.lacks = set()
        await world.advance(3)
        assert it.torrent.store.has(2)


async def test_a_server_with_wrong_bytes_is_asked_no_more(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.mirror.lies = True
        it.fetch()
        await world.advance(1.2)
        asked = len(it.mirror.asked)
        assert asked
        assert it.swarm.by_priority(BACKGROUND)
        await world.advance(60)
        assert len(it.mirror.asked) == asked


async def test_a_server_that_ignores_ranges_is_asked_for_all_where_nothing_else_comes(
    world: World,
) -> None:
    async with world.torrent(mirrors=1, named=False) as it:
        it.mirror.fault = RangesIgnoredError("it ignores ranges")
        it.fetch()
        await world.advance(0.1)
        it.mirror.fault = None
        await world.advance(5)
        assert it.mirror.whole == 2  # the index, and the pack
        assert it.torrent.store.complete()


async def test_while_peers_send_no_whole_file_is_asked_for(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.swarm.connected()
        it.mirror.fault = RangesIgnoredError("it ignores ranges")
        it.expect(range(20))
        for _ in range(10):
            await world.advance(0.5)
            it.swarm.send(min(it.swarm.wanted))
        assert it.mirror.whole == 0


async def test_a_reader_asks_a_mirror_for_its_exact_pieces_beside_the_swarm(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.swarm.connected()
        it.expect([5])
        await world.advance()
        it.swarm.send(5)
        await world.advance()
        it.read(6 * PIECE - 10, 20)
        await world.advance()
        assert it.mirror.asked == [range(6 * PIECE, 7 * PIECE)]
        assert it.swarm.wanted == {}


async def test_exact_pieces_that_do_not_come_are_asked_of_peers_after_a_second(
    world: World,
) -> None:
    async with world.torrent(mirrors=1) as it:
        it.swarm.connected()
        it.expect([5])
        await world.advance()
        it.swarm.send(5)
        await world.advance()
        it.mirror.fault = HangError()
        it.read(6 * PIECE - 10, 20)
        await world.advance(0.9)
        assert it.swarm.wanted == {}
        it.swarm.trickle()
        await world.advance(0.2)
        assert 6 in it.swarm.order(DEMAND)
        assert it.waits()


async def test_the_rest_of_pieces_comes_in_eight_requests_at_once(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        for piece in range(0, 40, 2):
            it.read(piece * PIECE, PIECE - 100)
        await world.advance(0.1)
        it.mirror.delay = 1
        del it.mirror.asked[:]
        it.expect(range(0, 40, 2))
        await world.advance()
        assert len(it.mirror.asked) == 8
        assert it.swarm.by_priority(BACKGROUND) == []


async def test_a_request_that_hangs_is_hedged_though_nothing_else_happens(world: World) -> None:
    async with world.torrent(4, mirrors=1) as it:
        it.swarm.connected()
        it.mirror.fault = HangError()
        it.fetch()
        await world.advance(1.5)
        assert it.mirror.asked
        assert it.swarm.wanted == {}
        await world.advance(2)
        assert set(it.swarm.wanted) == {0, 1, 2, 3}


async def test_a_read_inside_of_a_request_that_hangs_has_its_piece_from_peers(
    world: World,
) -> None:
    async with world.torrent(4, mirrors=1) as it:
        it.swarm.connected()
        it.mirror.fault = HangError()
        it.fetch()
        await world.advance(1.5)
        task = it.read_piece(1)
        await world.advance(2)
        assert it.swarm.by_priority(DEMAND) == [1]
        it.swarm.send(1)
        await world.advance()
        assert task.data == it.content[PIECE + 10 :][:100]


async def test_a_fetch_goes_on_where_ranges_land_while_the_swarm_is_left(world: World) -> None:
    async with world.torrent(12, mirrors=1, named=False) as it:
        it.mirror.delay = 0.5
        task = it.fetch()
        await world.advance(0.1)
        await it.torrent.fetcher.leave()
        await world.advance(2)
        it.torrent.fetcher.join()
        await world.advance(10)
        assert task.done


async def test_a_piece_that_is_wanted_once_more_waits_for_its_request(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.swarm.connected()
        it.expect([5])
        await world.advance()
        it.swarm.send(5)
        await world.advance()
        it.mirror.delay = 0.5
        first = it.read(6 * PIECE - 10, 20)
        await world.advance(0.1)
        first.cancel()
        await world.advance(0.1)
        again = it.read(6 * PIECE - 10, 20)
        await world.advance(1)
        assert again.done
        assert it.mirror.asked == [range(6 * PIECE, 7 * PIECE)]
        assert it.torrent.store.received.again == 0
