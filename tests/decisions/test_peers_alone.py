"""What is asked of peers where no server is known, and no other node fetches the same."""

from __future__ import annotations

from tests.decisions.sim import AHEAD, BACKGROUND, DEMAND, IDLE, PIECE, World

WINDOW = 8
"""Pieces: 128 KiB, the smallest window."""


async def test_a_read_asks_for_its_pieces_and_for_peers(world: World) -> None:
    async with world.torrent() as it:
        it.read(5 * PIECE - 10, PIECE)
        await world.advance()
        assert it.swarm.wanted == {4: DEMAND, 5: DEMAND}
        assert it.waits()
        assert set(it.swarm.dialled) == {("10.0.0.9", 1)}


async def test_two_reads_of_a_piece_are_one_request(world: World) -> None:
    async with world.torrent() as it:
        first, second = it.read_piece(5), it.read_piece(5)
        await world.advance()
        assert it.swarm.order(DEMAND) == [5]
        it.swarm.connected()
        it.swarm.send(5)
        await world.advance()
        assert first.data == second.data == it.content[5 * PIECE + 10 :][:100]
        assert it.swarm.order(DEMAND) == [5]


async def test_a_piece_is_let_go_with_its_last_reader(world: World) -> None:
    async with world.torrent() as it:
        first, second = it.read_piece(5), it.read_piece(5)
        await world.advance()
        first.cancel()
        await world.advance()
        assert it.swarm.wanted == {5: DEMAND}
        second.cancel()
        await world.advance()
        assert it.swarm.wanted == {}
        assert not it.waits()


async def test_a_piece_that_is_here_is_not_asked_for(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.read_piece(5)
        await world.advance()
        it.swarm.send(5)
        await world.advance()
        for later in (0.1, 5.0):  # from memory, then from the disk
            await world.advance(later)
            again = it.read_piece(5)
            await world.advance()
            assert again.done
        assert it.swarm.order(DEMAND) == [5]


async def test_an_arrived_piece_is_durable_after_a_second(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.read_piece(5)
        await world.advance()
        it.swarm.send(5)
        await world.advance(0.9)
        assert not it.torrent.store.stored.have.has(5, 5)
        await world.advance(0.2)
        assert it.torrent.store.stored.have.has(5, 5)
        assert it.swarm.log[-1][1:] == (IDLE, (5,))


async def test_a_stream_is_asked_for_in_order_a_window_at_a_time(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.expect(range(40, 60))
        await world.advance()
        assert it.swarm.by_priority(AHEAD) == list(range(40, 40 + WINDOW))
        it.swarm.send(40, 43)
        await world.advance()
        assert it.swarm.order(AHEAD) == list(range(40, 42 + WINDOW))


async def test_a_stream_needs_peers_only_once_it_asks_them(world: World) -> None:
    async with world.torrent() as it:
        assert not it.waits()
        it.expect([3])
        await world.advance()
        assert it.waits()


async def test_the_window_is_a_quarter_of_a_second_of_the_link(world: World) -> None:
    async with world.torrent(200, peer=True) as it:
        it.expect(range(200))
        await world.advance()
        for _ in range(3):  # 8 pieces in 0.11 s, 18.2 in a quarter of a second
            await world.advance(0.11)
            it.swarm.send(*sorted(it.swarm.wanted)[:8])
        await world.advance()
        assert len(it.swarm.wanted) == 18


async def test_half_a_window_is_asked_for_while_a_reader_waits(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.read_piece(0)
        await world.advance()
        it.expect(range(40, 60))
        await world.advance()
        assert it.swarm.by_priority(AHEAD) == list(range(40, 40 + WINDOW // 2))
        assert it.swarm.by_priority(DEMAND) == [0]


async def test_a_reader_overtakes_a_stream(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.expect(range(40, 60))
        await world.advance()
        it.read_piece(59)  # not asked for yet
        it.read_piece(41)  # asked for ahead
        await world.advance()
        assert it.swarm.by_priority(DEMAND) == [41, 59]


async def test_a_stream_that_is_given_up_is_not_asked_for(world: World) -> None:
    async with world.torrent(peer=True) as it:
        tasks = it.expect(range(40, 60))
        await world.advance()
        for task in tasks:
            task.cancel()
        await world.advance()
        assert it.swarm.wanted == {}
        assert not it.waits()


async def test_a_fetch_asks_for_a_window_behind_everything_else(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.fetch()
        await world.advance()
        assert len(it.swarm.by_priority(BACKGROUND)) == WINDOW + 1
        assert it.waits()


async def test_a_fetch_is_topped_up_in_batches(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.fetch()
        await world.advance()
        first = it.swarm.order(BACKGROUND)
        it.swarm.send(*first[:3])
        await world.advance()
        assert it.swarm.order(BACKGROUND) == first  # more than half of a window is on its way
        it.swarm.send(*first[3:6])
        await world.advance()
        assert len(it.swarm.order(BACKGROUND)) == len(first) + 6


async def test_a_fetch_asks_for_nothing_new_while_a_reader_waits(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.fetch()
        await world.advance()
        asked = it.swarm.order(BACKGROUND)
        wanted = next(piece for piece in range(64) if piece not in asked)
        it.read_piece(wanted)
        await world.advance()
        it.swarm.send(*asked)
        await world.advance()
        assert it.swarm.wanted == {wanted: DEMAND}
        it.swarm.send(wanted)
        await world.advance()
        assert len(it.swarm.by_priority(BACKGROUND)) == WINDOW + 1


async def test_a_reader_overtakes_a_fetch_which_keeps_its_piece(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.fetch()
        await world.advance()
        piece = it.swarm.order(BACKGROUND)[-1]
        reader = it.read_piece(piece)
        await world.advance()
        assert it.swarm.by_priority(DEMAND) == [piece]
        reader.cancel()
        await world.advance()
        assert piece in it.swarm.by_priority(BACKGROUND)


async def test_a_fetch_that_ends_lets_go_of_its_window(world: World) -> None:
    async with world.torrent(peer=True) as it:
        task = it.fetch()
        await world.advance()
        task.cancel()
        await world.advance()
        assert it.swarm.wanted == {}
        assert not it.waits()


async def test_a_fetch_ends_when_all_is_durable(world: World) -> None:
    async with world.torrent(12, peer=True) as it:
        task = it.fetch()
        for _ in range(4):
            await world.advance()
            it.swarm.send(*it.swarm.wanted)
        await world.advance(2)
        assert task.done
        assert it.torrent.usable()


async def test_a_fill_waits_until_no_reader_has_waited_for_half_a_second(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.read_piece(60)
        await world.advance()
        it.fill()
        await world.advance(1)
        assert it.swarm.wanted == {60: DEMAND}
        it.swarm.send(60)
        await world.advance(0.4)
        assert it.swarm.wanted == {}
        await world.advance(0.2)
        assert it.swarm.by_priority(BACKGROUND) == list(range(WINDOW))


async def test_a_fill_lets_go_when_a_reader_waits(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.fill()
        await world.advance(1)
        assert it.swarm.by_priority(BACKGROUND) == list(range(WINDOW))
        it.read_piece(60)
        await world.advance()
        assert it.swarm.wanted == {60: DEMAND}


async def test_a_fill_keeps_to_its_rate(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.fill(rate=4 * PIECE)
        for second in range(3):
            await world.advance(0.5)
            assert it.swarm.by_priority(BACKGROUND) == list(range(4 * second, 4 * second + 4))
            it.swarm.send(*it.swarm.wanted)
            await world.advance(0.5)


async def test_a_read_that_stalls_is_asked_for_anew_once(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.read_piece(5)
        await world.advance(0.9)
        assert it.swarm.insisted == 0
        await world.advance(0.2)
        assert it.swarm.insisted == 1
        asked = [entry[1:] for entry in it.swarm.log]
        assert asked == [(DEMAND, (5,)), (IDLE, (5,)), (DEMAND, (5,))]
        await world.advance(5)
        assert it.swarm.insisted == 1


async def test_a_stream_that_stalls_is_asked_for_anew_each_second(world: World) -> None:
    async with world.torrent(peer=True) as it:
        it.expect([5])
        await world.advance(2.5)
        assert it.swarm.insisted == 2
        assert it.swarm.wanted == {5: AHEAD}


async def test_what_was_asked_for_is_asked_for_again_when_the_swarm_is_joined_anew(
    world: World,
) -> None:
    async with world.torrent(peer=True) as it:
        it.read_piece(5)
        it.expect([7])
        await world.advance()
        await it.torrent.saver.rejoin()
        await world.advance()
        assert it.swarm.joined == 2
        assert it.swarm.wanted == {5: DEMAND, 7: AHEAD}
