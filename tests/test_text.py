"""What strangers wrote, as a terminal may show it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.text import printable


def test_what_a_terminal_obeys_is_told_not_sent() -> None:
    assert printable("a\x1b]52;c;cm0=\x07b") == r"a\x1b]52;c;cm0=\x07b"
    assert printable("one\r\ntwo\x9b2J") == r"one\r\ntwo\x9b2J"
    assert printable("\u202egpj.exe") == r"\u202egpj.exe"
    assert printable("h\udcff") == r"h\udcff"
    assert printable("plain: ä, 漢, C:\\x") == "plain: ä, 漢, C:\\x"


@given(st.text())
def test_any_text_becomes_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
