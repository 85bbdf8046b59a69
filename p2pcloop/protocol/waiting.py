"""The control protocol's event `waiting` in words (docs/formats/control.md)."""

from __future__ import annotations

from typing import Any


def describe_waiting(fields: dict[str, Any]) -> str:
    """Say what a `waiting` event says: for how long nothing came, and how it went with whom."""
    what = "no peer sends anything" if fields["connected"] else "no peer reachable"
    peers = ", ".join(map(str, fields["tried"])) or "none: no peer is known"
    return f"{what} for {fields['seconds']:.0f} s, still trying; peers tried: {peers}"
