"""The words to a guest's agent, and the end of a command's output."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import UsageError
from p2pcloop.protocol.agent import (
    MAX_COMMAND,
    MAX_WORDS,
    MarkedStream,
    WokenLine,
    check_command,
    encode_end,
    encode_kill,
    encode_run,
    encode_wake,
    new_mark,
)
from p2pcloopd.guest.system import scripts
from p2pcloopd.guest.system.kernel import find_busybox
from tests.support.waiting import BOUND

_MARK = b"abcabd"
"""Begins with itself: what may begin it is easily mistaken."""


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(
    st.lists(st.sampled_from([b"abc", b"abcabc", b"a", b"\0", b"xyz"])).map(b"".join),
    st.lists(st.integers(0, 100), max_size=8),
)
def test_an_output_ends_at_its_mark_however_it_is_cut(output: bytes, places: list[int]) -> None:
    stream = MarkedStream(_MARK, trailer=3)
    data = output + _MARK + b"012" + b"left behind"
    taken = b"".join(map(stream.feed, cut(data, places)))
    output = output.partition(_MARK)[0]
    assert taken == output
    assert stream.ended
    assert stream.rest() == b""


@given(st.binary(max_size=40), st.lists(st.integers(0, 100), max_size=8))
def test_an_output_without_a_mark_is_whole(output: bytes, places: list[int]) -> None:
    stream = MarkedStream(b"a mark that is not in there and is longer than all of it")
    assert b"".join(map(stream.feed, cut(output, places))) + stream.rest() == output
    assert not stream.ended
    assert stream.rest() == b""


def test_what_may_begin_the_mark_alone_is_held_back() -> None:
    stream = MarkedStream(_MARK)
    assert stream.feed(b"one abcab") == b"one "
    assert stream.feed(b"c") == b"abc"
    assert stream.feed(b"abd") == b""
    assert stream.ended


def test_marks_differ() -> None:
    assert len({new_mark() for _ in range(100)}) == 100


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.binary(max_size=12).map(lambda word: word.replace(b"\0", b"\n\\")),
        min_size=1,
        max_size=6,
    )
)
def test_the_agents_shell_reads_the_words_that_were_sent(words: list[bytes]) -> None:
    """By the loop of agent.sh itself, in busybox's shell."""
    agent = scripts.script("agent")
    loop = agent[agent.index("while IFS= read -r line <&3") :]
    told = loop.replace('setsid setsid sh /proc/self/fd/9 serve "$input"', 'tell "$input"')
    assert told != loop
    script = f"""
        exec 3<&0
        base=/port/
        tell() {{ read -r mark; for word in "$mark" "$@"; do printf '%s\\0' "$word"; done; }}
        {told.replace("3>&-", "")}
    """
    sent = encode_run(7, (1, 2, 3), _MARK, words, tools=True)
    done = subprocess.run(
        [find_busybox(), "sh", "-c", script],
        input=sent, capture_output=True, check=True, timeout=BOUND,
    )  # fmt: skip
    assert done.stderr == b""
    head = [_MARK, b"/port/1", b"/port/2", b"/port/3", b"7", b"1"]
    assert done.stdout.split(b"\0") == [*head, *words, b""]


@pytest.mark.parametrize(("slack", "is_set"), [(0, True), (3600, False)])
def test_the_agents_shell_does_what_wakes_a_guest(
    slack: int, *, is_set: bool, tmp_path: Path
) -> None:
    """By agent.sh's own function and loop, in busybox's shell; files of a kernel are played."""
    agent = scripts.script("agent")
    found = agent[agent.index("wake() {") : agent.index("# Each of the other two")]
    loop = agent[agent.index("while IFS= read -r line <&3") :].replace(">&3", "")
    for place in ("/dev/urandom", "/proc/sys/kernel/hostname", "/proc/net"):
        found = found.replace(place, str(tmp_path / place.rpartition("/")[2].replace("net", ".")))
    (tmp_path / "tcp").write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:0016 00000000:0000 0A\n"
        "   1: 0F02000A:0016 0202000A:D2A4 01\n"
        "   2: 0100007F:0016 0100007F:D2A4 01\n"
    )
    (tmp_path / "tcp6").write_text("  sl  local_address\n")
    script = f"exec 3<&0\ndate() {{ echo $* >{tmp_path}/date; }}\n{found}{loop}"
    done = subprocess.run(
        [find_busybox(), "sh", "-c", script],
        input=encode_wake(_MARK, int(time.time()) + 1000, slack, b"\1\2", "web"),
        capture_output=True, check=True, timeout=BOUND,
    )  # fmt: skip
    assert done.stderr == b""
    answer = WokenLine(_MARK).feed(done.stdout)
    assert answer is not None
    assert re.fullmatch(rb"-?\d+ (yes|no) 1", answer)
    assert (tmp_path / "date").exists() is is_set
    assert (tmp_path / "urandom").read_text() == "0102\n"
    assert (tmp_path / "hostname").read_text() == "web\n"


def test_a_guest_that_has_its_name_is_woken_without_one() -> None:
    assert encode_wake(_MARK, 7, 1, b"", "") == b"wake %s 7 1 - -\n" % _MARK


@given(st.lists(st.integers(0, 200), max_size=8))
def test_the_answer_to_waking_is_found_however_it_is_cut(places: list[int]) -> None:
    line = WokenLine(_MARK)
    data = b"\nwoken %s 1 no 2\nwoken %s 3 yes 0\nmore" % (_MARK[::-1], _MARK)
    assert [said for said in map(line.feed, cut(data, places)) if said] == [b"3 yes 0"]


def test_an_answer_that_does_not_end_is_not_kept() -> None:
    line = WokenLine(_MARK)
    for _ in range(10):
        assert line.feed(b"x" * WokenLine.MOST) is None
    assert len(line._held) == WokenLine.MOST


def test_other_lines() -> None:
    assert encode_kill(3, "TERM") == b"kill 3 TERM\n"
    assert encode_end(3) == b"end 3\n"


@pytest.mark.parametrize(
    "words", [[], [b"a"] * (MAX_WORDS + 1), [b"a" * (MAX_COMMAND + 1)], [b"a\0b"]]
)
def test_what_cannot_be_sent_is_refused(words: list[bytes]) -> None:
    with pytest.raises(UsageError):
        check_command(words)
