"""What is asked of which source while other nodes fetch the same at the same time."""

from __future__ import annotations

from p2pcloop.errors import UnreachableError
from p2pcloopd.engine.fetch.swarm import Others
from tests.decisions.sim import AHEAD, DEMAND, PIECE, HangError, Run, World

OTHERS = Others("10.0.0.1", ("10.0.0.2", "10.0.0.3"))
RARE = 4
"""Pieces that are asked for at once of those that only complete peers have."""


def alone(it: Run) -> list[int]:
    """The pieces that are wanted and that no other incomplete peer has."""
    return [piece for piece in sorted(it.swarm.wanted) if not it.swarm.have[piece]]


async def test_what_others_have_is_asked_for_in_order_and_few_of_the_rest(world: World) -> None:
    async with world.torrent(peer=True, where=OTHERS) as it:
        it.swarm.have = [piece % 2 for piece in range(64)]
        it.expect(range(64))
        await world.advance(0.2)
        assert it.swarm.crowded
        assert it.swarm.without == frozenset()
        shared = [piece for piece in it.swarm.order(AHEAD) if it.swarm.have[piece]]
        assert shared == list(range(1, 64, 2))
        assert len(alone(it)) == RARE


async def test_two_mebibytes_of_what_others_have_are_asked_for_at_once(world: World) -> None:
    async with world.torrent(300, peer=True, where=OTHERS, have=[1] * 300) as it:
        it.expect(range(300))
        await world.advance(0.2)
        assert sorted(it.swarm.wanted) == list(range((2 << 20) // PIECE))


async def test_each_host_begins_with_its_own_share(world: World) -> None:
    begun: list[set[int]] = []
    for here in range(3):
        hosts = tuple(f"10.0.0.{n}" for n in range(3) if n != here)
        async with world.torrent(peer=True, where=Others(f"10.0.0.{here}", hosts)) as it:
            it.expect(range(64))
            await world.advance(0.2)
            begun.append(set(it.swarm.wanted))
    assert [len(each) for each in begun] == [RARE] * 3
    assert len(set.union(*begun)) > 2 * RARE  # the very first piece may be asked for by several


async def test_a_node_without_work_asks_for_the_shares_of_others(world: World) -> None:
    async with world.torrent(peer=True, where=OTHERS) as it:
        it.expect(range(64))
        await world.advance(0.2)
        ours: set[int] = set()
        while len(ours) < 64:
            ours |= set(it.swarm.wanted)
            assert len(it.swarm.wanted) in range(1, RARE + 1)
            it.swarm.send(*it.swarm.wanted)
            await world.advance(0.1)


async def test_a_readers_piece_waits_a_quarter_of_a_second_for_others(world: World) -> None:
    async with world.torrent(peer=True, where=OTHERS) as it:
        it.expect(range(64))
        await world.advance(0.2)
        wanted = next(piece for piece in range(63, 0, -1) if piece not in it.swarm.wanted)
        it.read_piece(wanted)
        await world.advance(0.2)
        assert it.swarm.by_priority(DEMAND) == []
        await world.advance(0.1)
        assert it.swarm.by_priority(DEMAND) == [wanted]


async def test_a_readers_piece_that_others_have_comes_first_of_them(world: World) -> None:
    async with world.torrent(peer=True, where=OTHERS, have=[1] * 64) as it:
        it.read_piece(50)
        await world.advance(0.01)
        it.expect(range(64))
        await world.advance(0.3)
        assert it.swarm.by_priority(DEMAND) == [50]


async def test_a_crowd_ends_five_seconds_after_the_last_readahead(world: World) -> None:
    async with world.torrent(peer=True, where=OTHERS) as it:
        it.expect([1])
        await world.advance(0.2)
        it.swarm.send(1)
        await world.advance(4.5)
        assert it.swarm.crowded
        await world.advance(1.5)
        assert not it.swarm.crowded


async def test_peers_that_complete_end_the_crowd(world: World) -> None:
    async with world.torrent(peer=True, where=OTHERS) as it:
        it.expect(range(64))
        await world.advance(0.2)
        it.swarm.where = Others()
        await world.advance(0.5)
        assert not it.swarm.crowded


async def dispatched(world: World, it: Run) -> None:
    """Have a stream of all of it, and one piece dispatched: the mirror's host is known then."""
    it.mirror.dispatches = True
    it.expect(range(64))
    await world.advance(0.5)


async def test_a_dispatcher_is_asked_for_what_no_other_has_in_order(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.mirror.delay = 1
        await dispatched(world, it)
        assert it.mirror.candidates
        assert all(each == tuple(range(len(each))) for each in it.mirror.candidates)
        assert it.swarm.wanted == {}


async def test_a_crowd_asks_for_eight_pieces_at_once_in_all(world: World) -> None:
    for others, mine in ((1, 4), (3, 2), (7, 1), (20, 1)):
        where = Others("10.0.0.1", tuple(f"10.0.1.{n}" for n in range(others)))
        async with world.torrent(mirrors=1, peer=True, where=where) as it:
            it.mirror.delay = 1
            await dispatched(world, it)
            assert len(it.mirror.candidates) == mine


async def test_what_the_dispatcher_gave_to_others_is_asked_for_after_a_moment(
    world: World,
) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.mirror.gone = set(range(64))
        await dispatched(world, it)
        before = len(it.mirror.candidates)
        it.mirror.gone.discard(63)
        await world.advance(0.2)
        assert len(it.mirror.candidates) > before
        assert it.torrent.store.has(63)


async def test_the_dispatchers_host_is_no_peer_meanwhile(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.host = "10.0.0.77"
        await dispatched(world, it)
        assert it.swarm.without == {"10.0.0.77"}


async def test_a_dispatchers_host_that_is_one_of_the_others_stays_a_peer(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.host = "10.0.0.2"
        await dispatched(world, it)
        assert it.swarm.without == frozenset()


async def test_all_that_is_expected_is_wanted_of_others_in_exclusive_mode(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.host = "10.0.0.77"
        it.swarm.have = [int(piece >= 60) for piece in range(64)]
        it.mirror.gone = set(range(1, 64))
        await dispatched(world, it)
        assert set(it.swarm.wanted) == set(range(1, 64))


async def test_a_late_reader_in_exclusive_mode_has_its_exact_range(world: World) -> None:
    """A client was asked, so it waits for twice a second and a half: two others want the same."""
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.host = "10.0.0.77"
        it.mirror.gone = set(range(1, 64))
        await dispatched(world, it)
        it.read_piece(50)
        await it.keep_sending(2.9)
        assert it.mirror.candidates[-1][0] == 50
        assert it.mirror.asked == []
        await it.keep_sending(0.2)
        assert it.mirror.asked == [range(50 * PIECE, 51 * PIECE)]


async def test_a_dispatcher_that_fails_is_left_for_ten_seconds(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.mirror.fault = UnreachableError("it is down")
        await dispatched(world, it)
        assert len(alone(it)) == RARE  # shares are agreed upon without a word
        it.mirror.fault = None
        asked = len(it.mirror.candidates)
        await it.keep_sending(8)
        assert len(it.mirror.candidates) == asked
        await it.keep_sending(3)
        assert len(it.mirror.candidates) > asked


async def test_a_dispatcher_that_hangs_for_a_second_is_left(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.mirror.fault = HangError()
        await dispatched(world, it)
        assert alone(it) == []
        await world.advance(1.5)
        assert len(alone(it)) == RARE


async def test_a_dispatcher_with_wrong_bytes_is_asked_no_more(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.mirror.lies = True
        await dispatched(world, it)
        asked = len(it.mirror.candidates)
        await world.advance(30)
        assert len(it.mirror.candidates) == asked
        assert it.swarm.wanted


async def test_a_miss_in_a_crowd_comes_by_its_piece(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.expect([1])
        await world.advance(0.2)
        it.read_piece(50)
        await world.advance(0.3)
        assert it.mirror.asked == []


async def test_a_mirror_that_is_no_node_dispatches_nothing(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.expect(range(64))
        await world.advance(0.5)
        assert it.mirror.candidates == []
        assert len(alone(it)) == RARE


async def test_exclusive_mode_outlives_a_swarm_that_is_joined_anew(world: World) -> None:
    async with world.torrent(mirrors=1, peer=True, where=OTHERS) as it:
        it.host = "10.0.0.77"
        await dispatched(world, it)
        assert it.swarm.without == {"10.0.0.77"}
        it.expect(range(64))
        await it.torrent.saver.rejoin()
        await it.keep_sending(0.2)
        assert it.swarm.without == {"10.0.0.77"}
