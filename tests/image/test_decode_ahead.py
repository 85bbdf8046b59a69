"""Decoding on other threads: who decodes what, whatever the threads have begun."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from p2pcloop.image.decode_ahead import MAX_SIZE, DecodeAhead


class Decoder:
    """Decodings that note which thread does them."""

    def __init__(self) -> None:
        self.by: dict[int, threading.Thread] = {}
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def plain(self, key: int) -> Callable[[], bytes]:
        def decode() -> bytes:
            self.by[key] = threading.current_thread()
            self.go_on.set()
            return bytes([key])

        return decode

    def slow(self, key: int) -> Callable[[], bytes]:
        """One that ends when a plain one was done meanwhile."""

        def decode() -> bytes:
            self.by[key] = threading.current_thread()
            self.begun.set()
            assert self.go_on.wait(30)
            return bytes([key])

        return decode


@pytest.fixture
def ahead() -> Iterator[DecodeAhead]:
    ahead = DecodeAhead()
    ahead.workers = 1
    yield ahead
    ahead.close()


def test_who_waits_decodes_what_no_thread_has_begun(ahead: DecodeAhead) -> None:
    decoder = Decoder()
    ahead.start(1, 1, decoder.slow(1))
    assert decoder.begun.wait(30)
    for key in (2, 3):
        ahead.start(key, 1, decoder.plain(key))
    assert ahead.take(2) == b"\2"
    assert 2 not in ahead
    assert ahead.take(1) == b"\1"
    assert ahead.take(3) == b"\3"
    here = threading.current_thread()
    assert decoder.by[2] is here
    assert decoder.by[1] is not here


def test_who_waits_for_a_thread_decodes_another_one_meanwhile(ahead: DecodeAhead) -> None:
    decoder = Decoder()
    ahead.start(1, 1, decoder.slow(1))
    assert decoder.begun.wait(30)
    ahead.start(2, 1, decoder.plain(2))
    # Would never return, did it not decode 2.
    assert ahead.take(1) == b"\1"
    assert decoder.by[2] is threading.current_thread()
    assert ahead.take(2) == b"\2"


def test_what_was_never_taken_makes_room(ahead: DecodeAhead) -> None:
    decoder = Decoder()
    ahead.start(1, MAX_SIZE // 2, decoder.plain(1))
    ahead.start(2, MAX_SIZE // 2, decoder.plain(2))
    assert 1 in ahead
    ahead.start(3, 1, decoder.plain(3))
    assert [key in ahead for key in (1, 2, 3)] == [False, True, True]
    assert ahead.take(3) == b"\3"


def test_wrong_bytes_and_errors_come_to_who_takes(ahead: DecodeAhead) -> None:
    def fail() -> bytes:
        raise MemoryError

    ahead.start(1, 1, lambda: None)
    ahead.start(2, 1, fail)
    assert ahead.take(1) is None
    with pytest.raises(MemoryError):
        ahead.take(2)
