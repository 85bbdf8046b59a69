"""What strangers wrote, as a terminal may show it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.text import printable, without_secrets


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


def test_secrets_of_links_and_urls_are_left_out() -> None:
    link = "magnet:?xt=urn:btih:00&dn=a&x.p2pcloop=@key/a"
    assert without_secrets(f"the link {link}#key=abc234 is") == f"the link {link}#key=… is"
    asked = "https://me:word@h.example:8/a/b?token=x&c=d failed, as 'udp://h:1/?k=v' did"
    assert without_secrets(asked) == "https://…@h.example:8/a/b?… failed, as 'udp://h:1/?…' did"
    plain = "http://127.0.0.1:80/ does not answer: what now? @key/label, version 2"
    assert without_secrets(plain) == plain
