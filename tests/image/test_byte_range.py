"""Ranges that are asked for in parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.image.api import PART_SIZE, ByteRange


@given(st.integers(0, 1 << 44), st.integers(1, 5 * PART_SIZE), st.booleans())
def test_parts_are_the_range_end_to_end(offset: int, length: int, heal: bool) -> None:
    position = offset
    for part in ByteRange(b"t" * 20, offset, length, heal).parts():
        assert (part.torrent, part.offset, part.heal) == (b"t" * 20, position, heal)
        assert 0 < part.length <= PART_SIZE
        position += part.length
    assert position == offset + length
