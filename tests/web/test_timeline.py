"""What the page draws of a timeline: sums that hold, and no more marks than a screen has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.formats.timeline import Span, Timeline, Wait
from p2pcloopd.web.timeline import MAX_BINS, MAX_WAITS, covered, drawn, join_spans, until

WAITS = st.lists(st.builds(Wait, st.integers(0, 50), st.integers(0, 20), st.just(1)))
LENGTHS = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.integers(0, 1)), max_size=60)


@given(WAITS)
def test_time_is_covered_once(waits: list[Wait]) -> None:
    seconds = {n for wait in waits for n in range(int(wait.begin), int(wait.begin + wait.seconds))}
    assert covered(waits) == len(seconds)


@given(LENGTHS, st.integers(1, 10))
def test_joined_spans_are_few_and_lose_nothing(
    lengths: list[tuple[int, int, int]], most: int
) -> None:
    spans, begin = [], 0
    for seconds, came, busy in lengths:
        spans.append(Span(begin, seconds, came, busy))
        begin += seconds
    joined = join_spans(spans, most)
    assert len(joined) <= 2 * most + 1
    assert sum(span.seconds for span in joined) == begin
    assert sum(span.came for span in joined) == sum(came for _, came, _ in lengths)
    used = sum(span.busy * span.seconds for span in joined)
    assert used == pytest.approx(sum(seconds * busy for seconds, _, busy in lengths))
    ends = [span.begin + span.seconds for span in joined]
    assert [span.begin for span in joined[1:]] == ends[:-1]


def test_what_came_after_the_prompt_is_left_out() -> None:
    waits, spans = [Wait(1, 9, 1), Wait(5, 1, 1)], [Span(0, 2, 1, 0), Span(2, 3, 1, 0)]
    assert until(Timeline(0, waits, spans), 4) == Timeline(0, waits[:1], spans[:1])


def test_the_longest_waits_are_drawn_by_the_commands_clock() -> None:
    waits = [Wait(n, n / 1000, 4096) for n in range(MAX_WAITS + 50)]
    spans = [Span(n / 10, 0.1, 10, 0.5) for n in range(3000)]
    told = drawn(Timeline(1000.0, waits, spans), 0.25)
    assert len(told["waits"]) == MAX_WAITS
    assert told["waits"][0] == [1049.25, 1.049, 4096]
    assert (told["count"], told["came"]) == (MAX_WAITS + 50, 30_000)
    assert len(told["spans"]) <= 2 * MAX_BINS
    assert told["spans"][0][0] == 0.25
