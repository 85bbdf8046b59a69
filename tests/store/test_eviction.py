"""What goes, chosen from what is here and when it was booted."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.store.eviction import Choice, TorrentUse, choose, describe_kept
from p2pcloop.store.stamps import set_bits
from p2pcloop.store.usage import Keep

PIECE = 16384


def to_bits(here: list[bool]) -> bytes:
    bits = bytearray((len(here) + 7) // 8)
    for piece, present in enumerate(here):
        bits[piece >> 3] |= (0x80 >> (piece & 7)) if present else 0
    return bytes(bits)


def use(
    number: int, here: list[bool], stamps: list[int], keep: Keep | None = None, **facts: int
) -> TorrentUse:
    """A torrent whose last piece is short; the pieces that are here take room, and `junk` does."""
    size = len(here) * PIECE - 1000
    room = sum(min(PIECE, size - n * PIECE) for n, present in enumerate(here) if present)
    junk, records = facts.get("junk", 0), facts.get("records", 0)
    info_hash = bytes([number]) * 20
    return TorrentUse(
        info_hash, size, PIECE, to_bits(here), stamps, room + junk, records, junk, keep
    )


@st.composite
def torrents(draw: st.DrawFn) -> list[TorrentUse]:
    found = []
    for number in range(draw(st.integers(0, 5))):
        here = draw(st.lists(st.booleans(), min_size=1, max_size=20))
        stamps = [draw(st.integers(0, 4)) for _ in here]
        keep = draw(st.none() | st.sampled_from(Keep))
        junk, records = draw(st.sampled_from([0, 300_000])), draw(st.sampled_from([0, 8192]))
        made = use(number, here, stamps, keep, junk=junk, records=records)
        found.append(replace(made, garbage=draw(st.integers(0, 5)) == 0))
    return found


def freed(choice: Choice, uses: list[TorrentUse]) -> int:
    by_hash = {each.torrent: each for each in uses}
    total = sum(by_hash[torrent].room + by_hash[torrent].records for torrent in choice.remove)
    for torrent, pieces in choice.evict.items():
        total += by_hash[torrent].junk + sum(map(by_hash[torrent].piece_size, pieces))
    return total


@settings(max_examples=150)
@given(torrents(), st.none() | st.integers(0, 1_500_000), st.randoms())
def test_what_goes(uses: list[TorrentUse], quota: int | None, random: Random) -> None:
    choice = choose(uses, quota)
    by_hash = {each.torrent: each for each in uses}
    assert choice.room == sum(each.room + each.records for each in uses)
    assert choice.left == choice.room - freed(choice, uses)
    # Nothing goes that must stay, and only what is here.
    for torrent in [*choice.remove, *choice.evict]:
        assert by_hash[torrent].keep is None
    for torrent, pieces in choice.evict.items():
        each = by_hash[torrent]
        assert not each.garbage
        assert set(pieces) <= set(set_bits(each.here, each.pieces))
    assert set(choice.remove) == {e.torrent for e in uses if e.garbage and e.keep is None}
    # No more than is needed, and all that may where that is not enough.
    gone = {(torrent, piece) for torrent, pieces in choice.evict.items() for piece in pieces}
    may = {
        (each.torrent, piece)
        for each in uses
        if each.keep is None and not each.garbage
        for piece in set_bits(each.here, each.pieces)
    }
    if quota is None:
        assert not gone
    elif choice.left > quota:
        assert gone == may
    elif gone:
        last = max(by_hash[torrent].piece_size(piece) for torrent, piece in gone)
        assert choice.left + last > quota
    # Least recently booted first.
    stays = may - gone
    if gone and stays:
        newest = max(by_hash[torrent].stamps[piece] for torrent, piece in gone)
        assert newest <= min(by_hash[torrent].stamps[piece] for torrent, piece in stays)
    # In whatever order the torrents are told.
    shuffled = list(uses)
    random.shuffle(shuffled)
    assert choose(shuffled, quota) == choice


def test_what_no_boot_used_goes_from_the_end_of_what_was_booted_longest_ago() -> None:
    old = use(1, [True] * 4, [5, 5, 0, 0])
    new = use(2, [True] * 4, [9, 0, 0, 9])
    room = old.room + new.room
    assert choose([new, old], room - 1).evict == {old.torrent: (3,)}
    assert choose([new, old], room - 2 * PIECE).evict == {old.torrent: (2, 3), new.torrent: (2,)}
    everything = choose([new, old], 0)
    assert everything.evict == {old.torrent: (0, 1, 2, 3), new.torrent: (0, 1, 2, 3)}
    assert everything.left == 0


def test_a_layer_of_two_images_is_as_recent_as_the_last_boot_of_either() -> None:
    """Stamps are kept by torrent, so there is nothing else to do; the other layer goes first."""
    shared, alone = use(1, [True] * 3, [7, 7, 7]), use(2, [True] * 3, [6, 6, 6])
    assert list(choose([shared, alone], shared.room).evict) == [alone.torrent]


def test_room_that_holds_no_piece_is_given_back_first() -> None:
    """An interrupted collection leaves such; a torrent that must stay is not disturbed for it."""
    left_over = use(1, [True, False], [1, 1], junk=500_000)
    pinned = use(2, [True, False], [1, 1], Keep.PINNED, junk=500_000)
    choice = choose([left_over, pinned], None)
    assert choice.evict == {left_over.torrent: ()}
    assert choice.room - choice.left == 500_000
    assert choose([left_over, pinned], choice.left).evict == {left_over.torrent: ()}


def test_what_stays_is_told() -> None:
    uses = [
        use(1, [True], [1], Keep.PINNED, records=4096),
        use(2, [True] * 3, [1, 1, 1], Keep.RUNNING),
        use(3, [True], [1]),
    ]
    kept = choose(uses, 0).kept
    assert kept == {Keep.RUNNING: uses[1].room, Keep.PINNED: uses[0].room, Keep.RECORDS: 4096}
    assert describe_kept(kept) == (
        "48.2 kB are in use by running guests or commands, 15.4 kB are pinned,"
        " 4.1 kB are metadata and manifests"
    )
