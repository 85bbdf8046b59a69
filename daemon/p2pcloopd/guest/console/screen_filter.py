"""Lets a guest's output reach the user's terminal as far as it draws on the screen, and no more.

A terminal obeys more than drawing. Sequences set its title, read and write the clipboard (OSC 52),
open files (kitty's and iTerm2's graphics), print, redefine keys, clear the scrollback, and ask it
for text of the guest's choice. The terminal types that text: into the guest while it runs, into the
user's shell once it has ended. So this filter lists what passes. Two questions do, whose answers
are numbers: the terminal's kind (DA1) and the cursor's position (DSR); programs wait for these
answers. `undo` takes back what would outlive the guest: modes, colours, another screen.

Sources: ECMA-48 for the syntax, "XTerm Control Sequences" (Dickey) for the meanings.
"""

from __future__ import annotations

import os
import re

_TAIL = rb"[\x80-\xbf]"
_WIDE = (
    # UTF-8 (RFC 3629) without U+0080 to U+009F, which terminals obey as they do ESC.
    rb"\xc2[\xa0-\xbf]|[\xc3-\xdf]" + _TAIL + rb"|\xe0[\xa0-\xbf]" + _TAIL + rb"|[\xe1-\xef]"
    + _TAIL + rb"{2}|\xf0[\x90-\xbf]" + _TAIL + rb"{2}|[\xf1-\xf4]" + _TAIL + rb"{3}"
)  # fmt: skip
_SAFE = rb"[\x07-\x0f\x20-\x7e\xa0-\xff]"
"""BEL, BS, HT, LF, VT, FF, CR, SO and SI, what is printable, and bytes of older character sets."""

_COMMON = rb"\x1b\[[\x30-\x3b]{0,24}[ABCDGHKdm]"
"""Colours, moves and erased lines, which pass with any numbers."""

_TEXT_UTF8 = re.compile(
    rb"(?:[\x07-\x0f\x20-\x7e]+|" + _COMMON + rb"|" + _WIDE + rb"|" + _SAFE + rb")+"
)
_TEXT_BYTES = re.compile(rb"(?:" + _SAFE + rb"+|" + _COMMON + rb")+")
_SEQUENCE = re.compile(
    rb"\x1b(?:\[([\x3c-\x3f]?)([\x30-\x3b]{0,64})([\x20-\x2f]{0,4})([\x40-\x7e])"
    rb"|([\x20-\x2f]{0,4})([\x30-\x5a\x5c-\x7e]))"
)
_UNFINISHED = re.compile(
    rb"\x1b(?:\[[\x3c-\x3f]?[\x30-\x3b]{0,64}[\x20-\x2f]{0,4}|[\x20-\x2f]{0,4})\Z"
)
_CUT_LETTER = re.compile(
    rb"(?:[\xc2-\xdf]|\xe0[\xa0-\xbf]?|[\xe1-\xef]" + _TAIL + rb"?|[\xf0-\xf4]" + _TAIL
    + rb"{0,2})\Z"
)  # fmt: skip
_STRING_END = re.compile(rb"[\x07\x0a\x0d\x18\x1a\x1b]")
_STRINGS = b"P]X^_"
"""DCS, OSC, SOS, PM, APC: texts for the terminal, which all are dropped."""

_MOVES_AND_DRAWS = b"@ABCDEFGHIKLMPSTXZ`abdefgmrsu"
_ONLY_WITH = {
    b"J": (b"", b"0", b"1", b"2"),  # 3 clears the scrollback, which is the user's
    b"c": (b"", b"0"),
    b"n": (b"5", b"6"),
}
_OTHERS = {(b"", b" ", b"q"), (b"", b"!", b"p"), (b"?", b"", b"J"), (b"?", b"", b"K")}
"""Shape of the cursor, soft reset, selective erasing: private mark, intermediate bytes, final."""

_UNDONE = {b"q": b"\x1b[0 q", b"r": b"\x1b7\x1b[r\x1b8", b"m": b"\x1b[0m"}
_CHARACTER_SETS = b"0AB12"
_ESCAPES = b"78=>DEHM"
_MODES = frozenset({b"4", b"20"})
_PRIVATE_MODES = frozenset(
    # Cursor keys, reverse, origin, wrap, blinking and visible cursor, other screen, keypad,
    b"1 5 6 7 12 25 47 66 1047 1048 1049 "
    # mouse and focus, bracketed paste, synchronized output.
    b"1000 1002 1003 1004 1005 1006 1015 2004 2026".split()
)
_ON_BY_DEFAULT = frozenset({b"7", b"25"})
_SOFT_RESET_AND_CLEAR = b"\x1b[!p\x1b[H\x1b[2J"
_LONG_NUMBER = re.compile(rb"\d{6}")


def _passes(private: bytes, numbers: bytes, between: bytes, final: bytes) -> bool:
    """Whether a control sequence (CSI) does no more than draw, or asks for numbers alone."""
    if _LONG_NUMBER.search(numbers):
        return False
    if private or between:
        return (private, between, final) in _OTHERS
    if final in _ONLY_WITH:
        return numbers in _ONLY_WITH[final]
    # With several numbers T tracks the mouse.
    return final in _MOVES_AND_DRAWS and not (final == b"T" and b";" in numbers)


class ScreenFilter:
    """Takes output piece by piece, wherever it is cut.

    Args:
        utf8: the terminal takes UTF-8. Where it may not, bytes that it would obey pass nowhere, and
            some letters break.
    """

    def __init__(self, *, utf8: bool = True) -> None:
        self._utf8 = utf8
        self._text = _TEXT_UTF8 if utf8 else _TEXT_BYTES
        self._rest = b""
        self._in_string = False
        self._modes: dict[bytes, bool] = {}
        self._to_undo: dict[str, bytes] = {}

    def feed(self, data: bytes) -> bytes:
        """Return what of `data`, and of what was held back, may be written now."""
        data = self._rest + data
        cut = _CUT_LETTER.search(data, max(len(data) - 3, 0)) if self._utf8 else None
        self._rest = cut[0] if cut else b""
        data = data[: len(data) - len(self._rest)]
        passed = []
        at = 0
        while at < len(data):
            if self._in_string:
                if (end := _STRING_END.search(data, at)) is None:
                    break
                self._in_string = False
                # ESC may begin anything, as it does where a string was cut off.
                at = end.start() if end[0] in b"\x1b\n\r" else end.end()
            elif unfinished := _UNFINISHED.match(data, at):
                self._rest = unfinished[0] + self._rest
                break
            elif text := self._text.match(data, at):
                passed.append(self._checked(text[0]))
                at = text.end()
            elif sequence := _SEQUENCE.match(data, at):
                passed.append(self._sequence(sequence))
                at = sequence.end()
            else:
                at += 1
        return b"".join(passed)

    def undo(self) -> bytes:
        """Return what makes the terminal as it was before, as far as the guest changed it."""
        undone = []
        # First back from the other screen: the rest is undone on the user's own.
        for mode, on in sorted(self._modes.items(), key=lambda item: -int(item[0])):
            if on != (mode in _ON_BY_DEFAULT):
                undone.append(b"\x1b[?%s%s" % (mode, b"l" if on else b"h"))
        undone += self._to_undo.values()
        self._modes.clear()
        self._to_undo.clear()
        return b"".join(undone)

    def _checked(self, text: bytes) -> bytes:
        if b"\x0e" in text:
            self._to_undo["shift"] = b"\x0f"
        if b"\x1b" in text:
            self._to_undo["m"] = b"\x1b[0m"
        return text

    def _sequence(self, found: re.Match[bytes]) -> bytes:
        private, numbers, between, final, escape_between, escape = found.groups()
        if escape is not None:
            return self._escape(escape_between, escape, found[0])
        if final in b"hl" and not between:
            return self._set_modes(private, numbers, final)
        if not _passes(private, numbers, between, final):
            return b""
        if final in _UNDONE:
            self._to_undo[final.decode()] = _UNDONE[final]
        return found[0]

    def _set_modes(self, private: bytes, numbers: bytes, final: bytes) -> bytes:
        allowed = {b"": _MODES, b"?": _PRIVATE_MODES}.get(private, frozenset())
        modes = [number for number in numbers.split(b";") if number in allowed]
        for mode in modes:
            if private == b"?":
                self._modes[mode] = final == b"h"
            else:
                self._to_undo[f"mode {int(mode)}"] = b"\x1b[%sl" % mode
        return b"\x1b[%s%s%s" % (private, b";".join(modes), final) if modes else b""

    def _escape(self, between: bytes, final: bytes, sequence: bytes) -> bytes:
        if not between and final in _STRINGS:
            self._in_string = True
            return b""
        if not between and final == b"c":
            # A full reset forgets the scrollback in some terminals.
            return _SOFT_RESET_AND_CLEAR
        if between in (b"(", b")", b"*", b"+") and final in _CHARACTER_SETS:
            self._to_undo["character set"] = b"\x1b(B\x0f"
            return sequence
        if not between and final in _ESCAPES:
            if final == b"=":
                self._to_undo["keypad"] = b"\x1b>"
            return sequence
        return sequence if (between, final) == (b"#", b"8") else b""


def takes_utf8() -> bool:
    """Whether the terminal takes UTF-8, as its user's locale tells (setlocale(3))."""
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return re.search("utf-?8", next(filter(None, names), ""), re.IGNORECASE) is not None
