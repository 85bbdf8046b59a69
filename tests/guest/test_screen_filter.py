"""What of a guest's output reaches a terminal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloopd.guest.console import messages
from p2pcloopd.guest.console.screen_filter import ScreenFilter

PASSES = [
    b"plain\r\n\ttext\b\x07",
    "Umlaute äöü, Śląsk, 漢字, €, 😀".encode(),
    b"\xe4\xf6 of older sets",
    b"\x1b[31;1mred\x1b[0m\x1b[38;2;1;2;3mrgb\x1b[4:3mcurly",
    b"\x1b[2J\x1b[H\x1b[10;20H\x1b[K\x1b[1K\x1b[3;20r\x1b[5A\x1b[L\x1b[2P\x1b[7X\x1b[S\x1b[2T",
    b"\x1b7\x1b8\x1b=\x1b>\x1bD\x1bM\x1bE\x1bH\x1b#8",
    b"\x1b(0lqk\x1b(B\x1b)0\x0e\x0f",
    b"\x1b[?1049h\x1b[?1h\x1b[?25l\x1b[?1000;1006h\x1b[?2004h\x1b[4l\x1b[!p\x1b[2 q",
    # Programs wait for the answers, which are numbers.
    b"\x1b[6n\x1b[5n\x1b[c\x1b[0c",
]

DROPPED = [
    b"\x1b]0;title\x07",
    b"\x1b]52;c;cm0gLXJm\x07",
    b"\x1b]52;c;?\x1b\\",
    b"\x1b]8;;http://192.0.2.1/\x1b\\",
    b"\x1b]1337;File=name=eA==:eA==\x07",
    b"\x1b]4;1;?\x07",
    b"\x1b]11;?\x1b\\",
    b"\x1bP$qm\x1b\\",
    b"\x1bPtmux;\x1b\x1b]52;c;cm0=\x07\x1b\\",
    b"\x1bP1;1|17/6c730d\x1b\\",
    b"\x1b_Gt=f,a=T;L2V0Yy9wYXNzd2Q=\x1b\\",
    b"\x1b^private\x1b\\\x1bXstring\x1b\\",
    b"\x1b[21t\x1b[8;1;1t\x1b[3;0;0t",
    b"\x1b[>c\x1b[=c\x1b[>q\x1b[?6n\x1b[?15n\x1b[x\x1b[?1$p\x1b[7n",
    b"\x1b[5i\x1b[?4i\x1b[2h\x1b[?3h\x1b[?1337h\x1b[>4;2m\x1b[>1u\x1b[?u\x1b[?4m",
    b"\x1b[3J",
    b"\x1b[1;2;3;4;5T",
    b'\x1b[99999999b\x1b[0q\x1b[1"q\x1b[61"p',
    b"\x05\x00\x01\x1a\x18\x7f",
    b"\x1bZ\x1b%@\x1b%G\x1b F\x1bn\x1b|\x1b\\",
    b"\x9d\x90\x9b\x85",
]


@pytest.mark.parametrize("text", PASSES)
def test_what_draws_passes(text: bytes) -> None:
    assert ScreenFilter().feed(text) == text


@pytest.mark.parametrize("text", DROPPED)
def test_what_does_more_is_dropped(text: bytes) -> None:
    assert ScreenFilter().feed(b"<" + text + b">") == b"<>"


@pytest.mark.parametrize("letter", ["\u009b", "\u009d", "\u0090", "\u0085"])
def test_control_characters_in_utf8_are_none(letter: str) -> None:
    shown = ScreenFilter().feed(letter.encode() + b"6n")
    assert shown.decode(errors="replace") == "\ufffd6n"


def test_letters_that_another_terminal_obeys_break_there() -> None:
    text = "ś52;c;x".encode()
    assert ScreenFilter(utf8=True).feed(text) == text
    assert b"\x9b" not in ScreenFilter(utf8=False).feed(text)
    assert ScreenFilter(utf8=False).feed("grün".encode()) == "grün".encode()


def test_a_text_for_the_terminal_that_never_ends_hides_one_line() -> None:
    screen = ScreenFilter()
    assert screen.feed(b"a\x1b]52;c;") == b"a"
    assert screen.feed(b"b" * 10_000) == b""
    assert screen.feed(b"\r\nroot# ") == b"\r\nroot# "


def test_a_full_reset_keeps_the_scrollback() -> None:
    assert ScreenFilter().feed(b"\x1bc") == b"\x1b[!p\x1b[H\x1b[2J"


def test_modes_that_may_not_be_set_are_taken_out() -> None:
    assert ScreenFilter().feed(b"\x1b[?1;3;25h") == b"\x1b[?1;25h"


def test_what_would_outlive_the_guest_is_undone() -> None:
    screen = ScreenFilter()
    assert screen.undo() == b""
    screen.feed(b"\x1b[?1049h\x1b[?1000h\x1b[?25l\x1b[?7l\x1b[?7h\x1b[2;5r\x1b(0\x1b=\x1b[31m\x0e")
    undone = screen.undo()
    assert undone.startswith(b"\x1b[?1049l"), "what follows is for the user's own screen"
    expected = {b"\x1b[?1000l", b"\x1b[?25h", b"\x1b7\x1b[r\x1b8", b"\x1b(B", b"\x1b>", b"\x1b[0m"}
    assert all(part in undone for part in expected)
    assert b"?7" not in undone
    assert screen.undo() == b""


PIECES = st.lists(
    st.one_of(
        st.sampled_from(PASSES + DROPPED),
        st.binary(max_size=12),
        st.sampled_from([b"\x1b", b"\x1b[", b"\x1b]", b"\x1b[?", b"[", b"]52;", b"\x07", b"n"]),
    ),
    max_size=20,
)

ALLOWED = re.compile(
    rb"\x1b(?:\[(?:[0-9:;]*[@-IKLMPSTXZ`a-fgmrsu]|[012]?[JK]|\??[0-9;]+[hl]|\?[0-9]*[JK]"
    rb"|[56]n|0?c|!p|[0-9]* q)|[()*+][0AB12]|[78=>DEHM]|#8)"
)


@given(PIECES, st.booleans())
def test_no_other_sequence_ever_passes(pieces: list[bytes], utf8: bool) -> None:
    screen = ScreenFilter(utf8=utf8)
    shown = b"".join(map(screen.feed, pieces))
    left = ALLOWED.sub(b"", shown)
    assert not re.search(rb"[\x00-\x06\x10-\x1f\x7f]", left)
    if not utf8:
        assert not re.search(rb"[\x80-\x9f]", left)
    # What a decoder of UTF-8 makes of it has no control character beyond ASCII.
    assert not re.search("[\x80-\x9f]", left.decode(errors="replace"))


@given(PIECES, st.data())
def test_where_output_is_cut_does_not_matter(pieces: list[bytes], data: st.DataObject) -> None:
    text = b"".join(pieces)
    at = data.draw(st.integers(0, len(text)))
    whole, cut = ScreenFilter(), ScreenFilter()
    assert whole.feed(text) == cut.feed(text[:at]) + cut.feed(text[at:])
    assert whole.undo() == cut.undo()


def test_what_is_told_of_a_guest_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    """The name of its init, say, which the image chose."""
    messages.say("runs /sbin/\x1b]52;c;cm0=\x07init")
    told = capsys.readouterr().err
    assert told == "p2pcloop: the guest runs /sbin/\\x1b]52;c;cm0=\\x07init\n"
