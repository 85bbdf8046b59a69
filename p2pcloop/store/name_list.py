"""The names of a home as they stand in its files, unchecked and quickly: for hints and completion.

A command that acts on a name reads it by `Records`, which verifies what was signed, in half a
millisecond each.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgpack

from p2pcloop.store.home import Home


def list_names(home: Home) -> list[str]:
    """`@key/label` of each name that is known; none where the file is missing or damaged."""
    try:
        rows = msgpack.unpackb(home.names.read_bytes(), raw=False)["names"]
        return sorted(str(row["name"]) for row in rows)
    except (OSError, ValueError, TypeError, KeyError, msgpack.UnpackException):
        return []


def list_short_names(home: Home) -> Iterator[str]:
    """The short names of the user's own; none where the file is missing or damaged."""
    try:
        text = home.short_names.read_text("utf-8")
    except (OSError, ValueError):
        return
    for line in text.splitlines():
        short = line.partition(" ")[0]
        if short:
            yield short
