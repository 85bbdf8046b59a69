"""Text for terminals and programs: words of strangers made printable, and JSON."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return `text` as one line without a character that a terminal obeys.

    Control characters, line ends, marks that reverse the direction of writing and bytes that are
    no text (surrogates) become `\x1b`, `\u202e`, …; a backslash stays as it is.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def to_json(value: object) -> str:
    """One line of JSON; bytes are written in hexadecimal, objects by their text."""
    import json  # noqa: PLC0415  only those who print it pay for it

    return json.dumps(
        value, default=lambda item: item.hex() if isinstance(item, bytes) else str(item)
    )
