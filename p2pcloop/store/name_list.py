"""The names of a home as they stand in its files, unchecked and quickly: for hints and completion.

A command that acts on a name reads it by `Records`, which verifies what was signed, in half a
millisecond each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack

from p2pcloop.formats.named import read_file


def list_names(path: Path) -> list[str]:
    """`@key/label` of each name in a home's names.msgpack; none where it is missing or damaged."""
    try:
        rows = msgpack.unpackb(read_file(path), raw=False)["names"]
        return sorted(str(row["name"]) for row in rows)
    except (OSError, ValueError, TypeError, KeyError, msgpack.UnpackException):
        return []


def list_short_names(path: Path) -> Iterator[str]:
    """The short names in the user's file of them; none where it is missing or damaged."""
    try:
        text = read_file(path).decode()
    except (OSError, ValueError):
        return
    for line in text.splitlines():
        short = line.partition(" ")[0]
        if short:
            yield short
