"""What is asked for when no reader waits: interest in foreign clients, and the rest of pieces."""

from __future__ import annotations

from p2pcloop.errors import FormatError, UnreachableError
from tests.decisions.sim import BACKGROUND, DEMAND, IDLE, PIECE, World

MIB = (1 << 20) // PIECE
HERE = range(5 * PIECE + 10, 5 * PIECE + 1010)


# --- foreign clients choke a peer that wants nothing ------------------------------------------


async def test_of_foreign_clients_a_small_torrent_is_asked_for_whole(world: World) -> None:
    async with world.torrent(is_foreign=True) as it:
        it.swarm.connected()
        it.read_piece(5)
        await world.advance(0.1)
        assert it.swarm.by_priority(DEMAND) == [5]
        assert len(it.swarm.by_priority(BACKGROUND)) == 63


async def test_of_our_own_nodes_nothing_more_is_asked_for(world: World) -> None:
    async with world.torrent() as it:
        it.swarm.connected()
        it.read_piece(5)
        await world.advance(0.9)
        assert it.swarm.wanted == {5: DEMAND}


async def test_of_a_larger_torrent_nothing_more_is_asked_for_while_a_reader_waits(
    world: World,
) -> None:
    async with world.torrent(300, is_foreign=True) as it:
        it.swarm.connected()
        it.read_piece(50)
        await world.advance(0.5)
        assert it.swarm.wanted == {50: DEMAND}


async def test_and_a_mebibyte_from_the_last_read_on_while_none_waits(world: World) -> None:
    async with world.torrent(300, is_foreign=True) as it:
        it.swarm.connected()
        it.read_piece(250)
        await world.advance(0.1)
        it.swarm.send(250)
        await world.advance(1.1)
        wanted = it.swarm.by_priority(BACKGROUND)
        assert wanted == sorted([*range(251, 300), *range(MIB + 1 - 49)])


async def test_interest_begins_at_each_read_that_follows_a_pause(world: World) -> None:
    async with world.torrent(300, is_foreign=True) as it:
        it.swarm.connected()
        for piece in (250, 100):
            it.read_piece(piece)
            await world.advance(0.1)
            it.swarm.send(piece)
            await world.advance(1.1)
            assert piece + 1 in it.swarm.by_priority(BACKGROUND)
            await world.advance(10)
            assert it.swarm.wanted == {}


async def test_interest_ends_ten_seconds_after_the_last_read(world: World) -> None:
    async with world.torrent(300, is_foreign=True) as it:
        it.swarm.connected()
        it.read_piece(250)
        await world.advance(0.1)
        it.swarm.send(250)
        await world.advance(9.7)
        assert it.swarm.wanted
        await world.advance(0.5)
        assert it.swarm.wanted == {}


async def test_where_a_server_can_be_asked_no_interest_is_kept(world: World) -> None:
    async with world.torrent(mirrors=1, is_foreign=True) as it:
        it.swarm.connected()
        it.read_piece(5)
        await world.advance(0.5)
        assert it.swarm.wanted == {}


async def test_a_fetch_from_foreign_clients_asks_for_more_at_once(world: World) -> None:
    async with world.torrent(300, is_foreign=True) as it:
        it.swarm.connected()
        it.fetch()
        await world.advance(0.1)
        assert len(it.swarm.by_priority(BACKGROUND)) == MIB + 1


# --- provisional bytes become pieces ----------------------------------------------------------


async def test_provisional_bytes_that_fill_a_piece_are_made_one(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.read(4 * PIECE + 10, PIECE)
        await world.advance(0.05)
        it.read(5 * PIECE + 10, PIECE)
        await world.advance(0.05)
        assert not it.torrent.store.has(5)
        await world.advance(0.2)
        assert it.torrent.store.has(5)
        assert it.torrent.store.received.again == 0


async def test_the_rest_of_pieces_waits_until_nothing_was_read_for_thirty_seconds(
    world: World,
) -> None:
    async with world.torrent(mirrors=1) as it:
        it.read(HERE.start, len(HERE))
        await world.advance(20)
        it.read(HERE.start, len(HERE))  # here already: it counts all the same
        await world.advance(29)
        assert it.mirror.asked == [HERE]
        await world.advance(2)
        assert it.mirror.asked[1:] == [range(5 * PIECE, HERE.start), range(HERE.stop, 6 * PIECE)]
        assert it.torrent.store.has(5)


async def test_the_rest_of_pieces_is_asked_for_as_soon_as_a_server_can_be_asked_again(
    world: World,
) -> None:
    async with world.torrent(mirrors=1) as it:
        it.read(HERE.start, len(HERE))
        await world.advance(25)
        it.mirror.fault = FormatError("it answers wrongly")
        guess = it.guess(20 * PIECE, 100)  # the mirror is left alone for 30 s
        await world.advance(0.5)
        guess.cancel()
        it.mirror.fault = None
        await world.advance(29)  # nothing was read for 30 s
        assert not it.torrent.store.has(5)
        await world.advance(1)
        assert it.torrent.store.has(5)


async def test_what_is_published_is_completed_at_once(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        it.publish()
        await world.advance(3)
        assert it.torrent.store.has(5)


async def test_peers_are_asked_for_the_rest_only_of_what_is_published(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        it.swarm.connected()
        it.lose_servers()
        await world.advance(60)
        assert it.swarm.wanted == {}
        it.publish()
        it.torrent.store.changed.notify()
        await world.advance(3)
        assert it.swarm.wanted == {5: BACKGROUND}


async def test_no_peer_is_asked_for_the_rest_where_a_server_fails_meanwhile(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        it.read(HERE.start, len(HERE))
        await world.advance(0.1)
        it.swarm.connected()
        it.mirror.fault = UnreachableError("it hung up")
        await world.advance(60)
        assert len(it.mirror.asked) > 1
        assert all(priority is IDLE for _, priority, _ in it.swarm.log)
        it.mirror.fault = None
        await world.advance(60)
        assert it.torrent.store.has(5)


async def test_little_is_completed_at_once_and_not_while_readers_wait(world: World) -> None:
    async with world.torrent(mirrors=1) as it:
        for piece in range(2, 42, 2):
            it.read(piece * PIECE + 10, 100)
        await world.advance(0.1)
        it.publish()
        it.mirror.delay = 5
        await world.advance(3)
        asked = {span.start // PIECE for span in it.mirror.asked[20:]}
        assert len(asked) == 4  # 64 KiB


async def test_wrong_provisional_bytes_are_dropped_when_a_piece_is_made_of_them(
    world: World,
) -> None:
    async with world.torrent(mirrors=1) as it:
        it.mirror.lies = True
        it.read(4 * PIECE + 10, PIECE)
        it.read(5 * PIECE + 10, PIECE)
        await world.advance(0.5)
        assert not it.torrent.store.has(5)
        it.mirror.lies = False
        task = it.read_piece(5)
        await world.advance(0.5)
        assert task.data == it.content[5 * PIECE + 10 :][:100]
