"""The bytes that a node received between two looks at its status."""

from __future__ import annotations

from collections import Counter
from typing import Any


def measure_traffic(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Compare two results of the operation `status` of one run of p2pcloopd.

    If p2pcloopd was started anew in between, only the bytes since then are counted.

    Returns:
        `bytes_received`: all bytes received, protocol and estimated headers included;
        `sources`: bytes of content received, by the peer's address or the HTTP server's URL;
            sources of no bytes are left out.
    """
    if before["pid"] != after["pid"]:
        before = {"received": 0, "torrents": []}
    then, now = _sources(before), _sources(after)
    sources = {peer: count - then.get(peer, 0) for peer, count in now.items()}
    return {
        "bytes_received": after["received"] - before["received"],
        "sources": {peer: count for peer, count in sources.items() if count > 0},
    }


def _sources(status: dict[str, Any]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for torrent in status["torrents"]:
        for peer in torrent["traffic"]["peers"]:
            found[peer["address"]] += peer["received"]
        for server in torrent["traffic"]["servers"]:
            found[server["base"]] += server["received"]
    return found
