"""The control protocol's events `waiting` and `slow` in words (docs/formats/control.md)."""

from __future__ import annotations

from typing import Any

from p2pcloop.text import printable
from p2pcloop.units import format_size
from p2pcloop.words import joined, tr


def describe_waiting(fields: dict[str, Any]) -> str:
    """Text of a `waiting` event: how long no data came, and the result with each source."""
    return tr(
        "{fields} for {seconds:.0f} s, still trying; {fields2}",
        fields=_cause(fields),
        seconds=fields["seconds"],
        fields2=_tried(fields),
    )


def describe_cause(fields: dict[str, Any]) -> str:
    """Text of a `waiting` event that stays true: without how long no data came."""
    return joined("; ", (_cause(fields), _tried(fields)))


def _cause(fields: dict[str, Any]) -> str:
    if fields.get("arriving"):
        return tr("a server sends slowly")
    return tr("no peer sends anything") if fields["connected"] else tr("no peer reachable")


def _tried(fields: dict[str, Any]) -> str:
    tried = printable(", ".join(map(str, fields["tried"])))
    return tr("tried: {tried}", tried=tried) if tried else tr("no peer is known")


def describe_slow(fields: dict[str, Any], length: int) -> str:
    """Text of a `slow` event, of a read of `length` bytes."""
    peers = ", ".join(map(str, fields["peers"])) or tr("its peers")
    return tr(
        "{length}, {rate}/s from {peers}",
        length=format_size(length),
        rate=format_size(fields["rate"]),
        peers=peers,
    )
