"""The names of a home as they stand in its files, unchecked and quickly: for hints and completion.

A command that acts on a name reads it by `Records`, which verifies what was signed, in half a
millisecond each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack


def list_names(path: Path) -> list[str]:
    """`@key/label` of each name in a home's names.msgpack; none where it is missing or damaged."""
    try:
        rows = msgpack.unpackb(path.read_bytes(), raw=False)["names"]
        return sorted(str(row["name"]) for row in rows)
    except (OSError, ValueError, TypeError, KeyError, msgpack.UnpackException):
        return []


def list_short_names(path: Path) -> Iterator[str]:
    """The short names in the user's file of them; none where it is missing or damaged."""
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError):
        return
    for line in text.splitlines():
        short = line.partition(" ")[0]
        if short:
            yield short
