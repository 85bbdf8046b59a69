"""Ranges of bytes that do not overlap: against a set of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.store.intervals import Ranges

SMALL = st.integers(0, 40)
LENGTH = st.integers(1, 12)


@given(st.lists(st.tuples(st.booleans(), SMALL, LENGTH)), SMALL, LENGTH)
def test_they_are_what_a_set_of_bytes_is(
    steps: list[tuple[bool, int, int]], offset: int, length: int
) -> None:
    ranges, model = Ranges(), dict[int, int]()

    def taken() -> set[int]:
        return {byte for at, size in model.items() for byte in range(at, at + size)}

    for add, at, size in steps:
        if add and taken().isdisjoint(range(at, at + size)):
            ranges.add(at, size)
            model[at] = size
        elif add:
            with pytest.raises(ValueError):
                ranges.add(at, size)
        elif model:
            known = sorted(model)[at % len(model)]
            ranges.remove(known)
            del model[known]
    assert list(ranges) == sorted(model.items())
    assert (ranges.size, len(ranges)) == (sum(model.values()), len(model))
    wanted = range(offset, offset + length)
    gaps = [byte for at, size in ranges.gaps(offset, length) for byte in range(at, at + size)]
    assert gaps == [byte for byte in wanted if byte not in taken()]
    assert ranges.overlaps(offset, length) is bool(ranges.overlapping(offset, length))
    assert ranges.overlapping(offset, length) == [
        (at, size) for at, size in sorted(model.items()) if at < wanted.stop and at + size > offset
    ]
    later = [each for each in sorted(model.items()) if each[0] >= offset]
    assert ranges.next(offset) == (later[0] if later else None)


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (1, 1)])
def test_what_cannot_be_added_is_refused(offset: int, length: int) -> None:
    ranges = Ranges()
    ranges.add(0, 2)
    with pytest.raises(ValueError, match="cannot be added"):
        ranges.add(offset, length)
    assert list(ranges) == [(0, 2)]
