"""Makes the link to a version published here: this node first, then sources of the layers below.

Of a base that came from others this node may have but a part, and only while it runs: the link
leads to those others, too. Not to all that are known: a link is copied and read out by people, a
peer is some 25 characters of it and a URL 40, so what others add stays below a thousand or so.

The link of a public version is for strangers: it names no peers of others, who may have been told
of by a link that went from hand to hand, nor their nodes' URLs. Strangers find them as trackers
and the DHT have it.

An address that this node had lately is no other peer: it came here by an older link of our own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from p2pcloop.formats.link import Link, format_peer
from p2pcloop.formats.manifest import SignedManifest
from p2pcloop.formats.place import is_url
from p2pcloopd.engine.disk.record import Peer
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.node.node import Node

MAX_PEERS_OF_OTHERS = 8
"""Enough to begin with; a longer link is harder to pass on."""

MAX_MIRRORS_OF_OTHERS = 4
MAX_WEB_SEEDS = 4


def make_link(
    node: Node,
    signed: SignedManifest,
    manifest_torrent: bytes,
    layers: Sequence[Torrent],
    *,
    public: bool,
    secret: bytes | None,
) -> Link:
    """Make the link to a version.

    Args:
        layers: the torrents of all its layers.
        public: it is announced: the link names the trackers, for others who find it there, and
            no peers of others.
    """
    manifest = signed.manifest
    peers, urls = node.addresses(), node.urls()
    # Who reaches this node from elsewhere reaches nothing on this machine's loopback.
    local = all(_is_loopback(host) for host, _ in peers)
    others = [
        peer
        for peer in _known_peers(layers)
        if format_peer(peer) not in node.link_places and _may_reach(peer[0], local)
    ]
    mirrors = [
        base
        for base in node.layers.bases(manifest.all_layers)
        if is_url(base) and base not in node.link_places and _may_reach(_host(base), local)
    ]
    if public:
        hosts = {host for host, _ in others}
        others, mirrors = [], [base for base in mirrors if _host(base) not in hosts]
    web_seeds = [url for url in _common_web_seeds(layers) if _may_reach(_host(url), local)]
    return Link(
        name=manifest.name,
        manifest_id=signed.id,
        manifest_torrent=manifest_torrent,
        pack_torrent=manifest.pack_torrent,
        peers=(*peers, *others[:MAX_PEERS_OF_OTHERS]),
        trackers=node.config.discovery.announce_trackers if public else (),
        web_seeds=tuple(web_seeds[:MAX_WEB_SEEDS]),
        mirrors=(*urls, *mirrors[:MAX_MIRRORS_OF_OTHERS]),
        secret=secret,
    ).fitted()


def _known_peers(layers: Iterable[Torrent]) -> list[Peer]:
    """Those that links named for the layers: first the connected, last those that failed."""
    ranks: dict[Peer, int] = {}
    for torrent in layers:
        peers = torrent.peers
        for peer, tried in zip(peers.sources.peers, peers.tried(), strict=True):
            rank = 0 if tried.connected else 1 if tried.error is None else 2
            ranks[peer] = min(rank, ranks.get(peer, rank))
    return sorted(ranks, key=ranks.__getitem__)


def _common_web_seeds(layers: Iterable[Torrent]) -> list[str]:
    """Those of all the layers that have any: a link names web seeds for all layers at once.

    The new layer is not there: it is answered 404, and comes from others.
    """
    known = [torrent.peers.sources.web_seeds for torrent in layers]
    known = [urls for urls in known if urls]
    return [url for url in known[0] if all(url in urls for urls in known)] if known else []


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _may_reach(host: str, local: bool) -> bool:
    """Whether a link with this host may help a reader.

    Args:
        local: readers are on this machine.
    """
    address = _address(host)
    if address is not None and (address.is_unspecified or address.is_link_local):
        return False
    return local or not _is_loopback(host)


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is written as; None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
