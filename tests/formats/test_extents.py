"""A file that lies in stretches of another one, against the same bytes put together."""

import os
import tempfile

from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.formats.extents import Extents

OUTER = bytes(range(256)) * 16
extents = st.lists(
    st.tuples(st.integers(0, len(OUTER)), st.integers(0, 300)).map(
        lambda e: (e[0], min(e[1], len(OUTER) - e[0]))
    ),
    max_size=6,
)


@given(extents, st.integers(0, 2000), st.integers(0, 2000))
def test_any_read_of_any_extents(pairs: list[tuple[int, int]], offset: int, length: int) -> None:
    inner = b"".join(OUTER[start : start + size] for start, size in pairs)
    with tempfile.TemporaryFile() as file:
        file.write(OUTER)
        file.flush()
        found = Extents(pairs)
        assert found.size == len(inner)
        assert found.pread(file.fileno(), length, offset) == inner[offset : offset + length]


def test_extents_side_by_side_are_one() -> None:
    joined = Extents([(100, 50), (150, 0), (150, 7), (200, 1)])
    assert list(joined) == [(100, 57), (200, 1)]
    assert (len(joined), joined.start, joined.end, joined.size) == (2, 100, 201, 58)
    assert joined == Extents([(100, 57), (200, 1)])
    assert joined != Extents([(100, 57)])
    assert (Extents([]).size, Extents([]).start, Extents([]).end) == (0, 0, 0)


def test_a_read_ends_where_the_outer_file_does() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(OUTER[:120])
        file.flush()
        cut = Extents([(0, 100), (110, 100), (0, 10)])
        assert cut.pread(file.fileno(), 300, 50) == OUTER[50:100] + OUTER[110:120]
        assert os.pread(file.fileno(), 1, 120) == b""
