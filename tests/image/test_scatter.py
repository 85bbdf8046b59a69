"""Scatter fills views one after the other, wherever their borders lie."""

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.image.scatter import Scatter

lengths = st.lists(st.integers(0, 9), max_size=8)


@settings(max_examples=200, deadline=None)
@given(lengths, st.lists(st.tuples(st.sampled_from(("put", "zero", "take")), st.integers(0, 12))))
def test_the_bytes_come_out_in_order(views: list[int], steps: list[tuple[str, int]]) -> None:
    buffers = [bytearray(b"\xaa" * length) for length in views]
    scatter = Scatter([memoryview(buffer) for buffer in buffers])
    room, expected = sum(views), b""
    for number, (what, wanted) in enumerate(steps):
        length = min(wanted, room - len(expected))
        if what == "zero":
            scatter.zero(length)
            expected += bytes(length)
            continue
        data = bytes([number % 100 + 1]) * length
        if what == "put":
            scatter.put(memoryview(data))
        else:
            taken = scatter.take(length)
            assert sum(map(len, taken)) == length
            for view in taken:
                view[:] = data[: len(view)]
        expected += data
    assert b"".join(buffers) == expected.ljust(room, b"\xaa")


def test_more_zeros_than_its_store_of_them() -> None:
    buffer = bytearray(b"\xaa" * (3 << 20))
    Scatter([memoryview(buffer)]).zero((2 << 20) + 5)
    assert buffer == bytes((2 << 20) + 5) + b"\xaa" * ((1 << 20) - 5)
