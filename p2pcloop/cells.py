"""Text on terminals, counted in cells: East Asian wide characters take two.

Widths are those of Unicode Standard Annex 11, as Python's `unicodedata` has them. Characters that
combine with the one before take no cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from unicodedata import combining, east_asian_width

_TOKEN = re.compile(r"[ ]+|[^ \u2e80-\uffef]+|.")
"""What a line is not broken inside: blanks, words, and single characters of East Asian scripts."""

_NOT_FIRST = frozenset("、。,.・:;?!)」』】〉》…ー々ぁぃぅぇぉっゃゅょァィゥェォッャュョ")
"""Characters with which no line begins (a part of those of JIS X 4051)."""

_NOT_LAST = frozenset("(「『【〈《")
"""Characters with which no line ends."""


def cells(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def padded(text: str, width: int) -> str:
    """Return a text with blanks behind it, as many as fill `width` cells."""
    return text + " " * (width - cells(text))


def clipped(text: str, width: int) -> str:
    """The beginning of a text that takes at most `width` cells."""
    if text.isascii():
        return text[:width]
    while cells(text) > width:
        text = text[: -max(1, (cells(text) - width) // 2)]
    return text


def wrapped(text: str, width: int) -> list[str]:
    """Break a paragraph into lines of at most `width` cells: at blanks, and between East Asian
    characters. A longer word has a line of its own."""
    lines = [""]
    for unit in _units(text):
        if lines[-1] and cells(lines[-1] + unit.rstrip()) > width:
            lines[-1] = lines[-1].rstrip()
            lines.append(unit.lstrip())
        else:
            lines[-1] += unit
    return lines


def _units(text: str) -> Iterator[str]:
    """What is not divided between lines: a token with the marks that stay with it."""
    unit = ""
    for token in _TOKEN.findall(text):
        if unit and token[0] not in _NOT_FIRST and unit[-1] not in _NOT_LAST and token[0] != " ":
            yield unit
            unit = ""
        unit += token
    if unit:
        yield unit
