"""Timelines: written line by line, read back, and torn at any byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.timeline import (
    MAX_SIZE,
    Span,
    Timeline,
    Wait,
    decode_timeline,
    encode_span,
    encode_start,
    encode_wait,
)

GOLDEN = Path(__file__).parents[1] / "data" / "timeline-v1.txt"
START = 1_700_000_000.25
WAITS = [Wait(0.5, 0.125, 65536), Wait(2.0, 1.5, 4096)]
SPANS = [Span(0.0, 0.625, 131072, 0.75), Span(0.625, 2.875, 0, 1.0)]

SECONDS = st.integers(0, 10**8).map(lambda n: n / 1000)
BYTES = st.integers(0, 2**40)
LINES = st.lists(
    st.builds(Wait, SECONDS, SECONDS, BYTES)
    | st.builds(Span, SECONDS, SECONDS, BYTES, st.integers(0, 100).map(lambda n: n / 100))
)


def encode(start: float, lines: list[Wait | Span]) -> bytes:
    written = [encode_wait(x) if isinstance(x, Wait) else encode_span(x) for x in lines]
    return encode_start(start) + b"".join(written)


def test_the_golden_file_is_read_and_written() -> None:
    lines: list[Wait | Span] = [SPANS[0], WAITS[0], WAITS[1], SPANS[1]]
    assert encode(START, lines) == GOLDEN.read_bytes()
    assert decode_timeline(GOLDEN.read_bytes()) == Timeline(START, WAITS, SPANS)


@given(SECONDS, LINES, st.data())
def test_what_is_written_is_read_up_to_the_last_whole_line(
    start: float, lines: list[Wait | Span], data: st.DataObject
) -> None:
    written = encode(start, lines)
    found = decode_timeline(written)
    assert found.waits == [each for each in lines if isinstance(each, Wait)]
    assert found.spans == [each for each in lines if isinstance(each, Span)]
    first = written.index(b"\n") + 1
    torn = written[: data.draw(st.integers(first, len(written)))]
    read = decode_timeline(torn)
    assert len(read.waits) + len(read.spans) == torn.count(b"\n") - 1


@given(st.binary())
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_timeline(data)


@pytest.mark.parametrize(
    "line",
    ["wait 1 2", "wait 1 2 -3", "wait 1 nan 3", "span 1 2 3 x", "other 1 2 3", "wait 1 2 1e99"],
)
def test_a_line_that_is_wrong_is_refused(line: str) -> None:
    with pytest.raises(FormatError):
        decode_timeline(encode_start(1.0) + line.encode() + b"\n")


def test_a_timeline_that_is_too_long_is_refused() -> None:
    with pytest.raises(FormatError):
        decode_timeline(encode_start(1.0) + b"wait 1 2 3\n" * (MAX_SIZE // 5))
