"""Text for terminals and programs: words of strangers made printable, and JSON."""

from __future__ import annotations

import re

from p2pcloop.words import Text, mapped

_SECRETS = (
    (re.compile(r"(#key=)[a-z2-7]+"), r"\1…"),  # of a private image, in its link
    (re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@]+@"), r"\1…@"),  # a user and a password
    (re.compile(r"(\b(?:https?|udp)://[^\s?'\"]*\?)[^\s'\"]+"), r"\1…"),  # a query: a passkey
)
"""What a text may hold that opens something, and what is told in its place."""


def printable(text: str) -> str:
    r"""Return `text` as one line without a character that a terminal obeys.

    Control characters, line ends, marks that reverse the direction of writing and bytes that are
    no text (surrogates) become `\x1b`, `\u202e`, …; a backslash stays as it is.
    """
    if isinstance(text, Text):  # what strangers wrote in it; the rest is ours
        return mapped(text, printable)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def without_secrets(text: str) -> str:
    """Return `text` without what opens something: secrets in links and URLs."""
    for pattern, told in _SECRETS:
        text = pattern.sub(told, text)
    return text


def to_json(value: object) -> str:
    """One line of JSON; bytes are written in hexadecimal, objects by their text."""
    import json  # noqa: PLC0415  only those who print it pay for it

    return json.dumps(
        value, default=lambda item: item.hex() if isinstance(item, bytes) else str(item)
    )
