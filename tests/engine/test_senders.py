"""Who sent which piece: the last who did, and no more memory than a byte a piece."""

from __future__ import annotations

from p2pcloopd.engine.fetch.senders import MAX_SENDERS, Senders


def test_the_last_sender_of_a_piece_is_kept() -> None:
    senders = Senders()
    senders.note(3, 3, ("10.0.0.1", 6881))
    senders.note(1, 2, "http://mirror/")
    senders.note(2, 2, ("10.0.0.1", 6881))
    assert senders.all == [("10.0.0.1", 6881), "http://mirror/"]
    assert bytes(senders.of) == bytes([0, 2, 1, 1])


def test_of_very_many_senders_the_later_ones_are_one() -> None:
    senders = Senders()
    for number in range(MAX_SENDERS + 40):
        senders.note(number, number, number)
    assert len(senders.all) == MAX_SENDERS
    assert senders.of[MAX_SENDERS - 1] == MAX_SENDERS
    assert set(senders.of[MAX_SENDERS:]) == {MAX_SENDERS + 1}
    senders.note(0, 0, MAX_SENDERS - 1)
    assert senders.of[0] == MAX_SENDERS
