"""The escape key: what is typed is cut into text and commands."""

from __future__ import annotations

import pytest

from p2pcloopd.guest.console.escape import BRIEF, HELP, EscapeFilter


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (b"ls\r\x03\x1a\x1c\x04\x01~.", [b"ls\r\x03\x1a\x1c\x04\x01~."]),
        (b"a\x1dsb", [b"a", "shutdown", b"b"]),
        (b"\x1dK", ["kill"]),
        (b"\x1di\x1d?", ["send", "help"]),
        (b"a\x1d\x1db", [b"a\x1db"]),
        (b"\x1d\x1d\x1ds", [b"\x1d", "shutdown"]),
        (b"\x1dxy", ["help", b"y"]),
        (b"\x1dk", ["help"]),
        ("ü]".encode(), ["ü]".encode()]),
        (b"\x1d", []),
    ],
)
def test_text_and_commands(typed: bytes, expected: list[bytes | str]) -> None:
    assert list(EscapeFilter().feed(typed)) == expected
    by_byte = EscapeFilter()
    pieces = [piece for byte in typed for piece in by_byte.feed(bytes([byte]))]
    text = [piece for piece in pieces if isinstance(piece, bytes)]
    assert b"".join(text) == b"".join(p for p in expected if isinstance(p, bytes))
    assert [p for p in pieces if isinstance(p, str)] == [p for p in expected if isinstance(p, str)]


def test_every_command_is_helped_with() -> None:
    assert "Ctrl-] ?" in BRIEF
    for key in ("s", "K", "i", "?", "Ctrl-]"):
        assert f"Ctrl-] {key} " in f"{HELP} "
