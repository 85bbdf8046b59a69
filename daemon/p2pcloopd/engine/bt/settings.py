"""What the session is told about the network, and the libtorrent settings that follow from it.

Every value that differs from libtorrent's default carries its reason.
"""

from __future__ import annotations

import ipaddress

from p2pcloop.formats.link import format_peer
from p2pcloop.frozen import dataclass
from p2pcloop.store.have import MAX_PIECES
from p2pcloopd.engine.disk.metainfo import MAX_METADATA_SIZE
from p2pcloopd.engine.disk.record import Peer
from p2pcloopd.engine.fetch.peers import is_address

FINGERPRINT = "-PC0100-"
"""How the peer ids of our nodes begin (BEP 20)."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a node meets others.

    Attributes:
        listen: address and port of each TCP socket to listen on. Port 0 takes a free one, but
            0.0.0.0 and :: (every interface) need a port, or each interface gets another. Empty:
            no peer can connect.
        outgoing: local addresses to connect from; empty: as the system routes.
        dht, lsd, upnp, natpmp, pex: ways to find peers that the user did not name, or to be found
            by them; all off.
        dht_nodes: where the DHT is joined.
        trackers: ask those that were named for a torrent, while it is needed.
        announce_trackers: what public torrents are announced to.
        download_rate, upload_rate: limits in bytes a second, 0 for none; peers on the local
            network are limited too.
        user_agent: what peers are told.
    """

    listen: tuple[Peer, ...] = (("127.0.0.1", 0),)
    outgoing: tuple[str, ...] = ()
    dht: bool = False
    lsd: bool = False
    upnp: bool = False
    natpmp: bool = False
    pex: bool = False
    dht_nodes: tuple[Peer, ...] = ()
    trackers: bool = False
    announce_trackers: tuple[str, ...] = ()
    download_rate: int = 0
    upload_rate: int = 0
    user_agent: str = "p2pcloop/0.1"


def session_settings(settings: EngineSettings) -> dict[str, object]:
    """The libtorrent settings (libtorrent.org, "settings_pack") that make a node of ours."""
    return _network(settings) | _QUIET | ALONE | _DEMAND | _PEERS | _RESOURCES


def _network(settings: EngineSettings) -> dict[str, object]:
    return {
        "listen_interfaces": ",".join(map(format_peer, settings.listen)),
        "outgoing_interfaces": ",".join(settings.outgoing),
        "enable_dht": settings.dht,
        # One node an address, and one of its /24 in a search: right on the internet, where false
        # nodes are cheap, and wrong on a network of one's own, where all are neighbours.
        "dht_restrict_routing_ips": not _is_private(settings.dht_nodes),
        "dht_restrict_search_ips": not _is_private(settings.dht_nodes),
        "enable_lsd": settings.lsd,
        "enable_upnp": settings.upnp,
        "enable_natpmp": settings.natpmp,
        "download_rate_limit": settings.download_rate,
        "upload_rate_limit": settings.upload_rate,
        "user_agent": settings.user_agent,
        "peer_fingerprint": FINGERPRINT,
    }


def _is_private(nodes: tuple[Peer, ...]) -> bool:
    """Whether nodes are on loopback or private networks (RFC 1918, RFC 4193), all of them."""
    return bool(nodes) and all(
        is_address(host) and ipaddress.ip_address(host).is_private for host, _ in nodes
    )


_QUIET: dict[str, object] = {
    # The defaults name hosts on the internet.
    "dht_bootstrap_nodes": "",
    "webtorrent_stun_server": "",
    # Every tracker that the user named, and not the first that answers.
    "announce_to_all_trackers": True,
    # Only the ports that were asked for: a link names them.
    "listen_system_port_fallback": False,
    "max_retry_port_bind": 0,
    # uTP stalls for a second with many requests out; TCP with TCP_NODELAY does not.
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "stop_tracker_timeout": 1,
}

ALONE: dict[str, object] = {
    # Bounds that never bite: what is asked for is bounded by our window.
    "request_queue_time": 1000,
    "max_out_request_queue": 2000,
}
"""How much a peer is asked for at once where no other client wants the same."""

CROWD: dict[str, object] = {"request_queue_time": 1, "max_out_request_queue": 2}
"""And where others do: see session_limits.py."""

_DEMAND: dict[str, object] = {
    # A peer that wants nothing at the moment is one that will want something soon.
    "close_redundant_connections": False,
    "inactivity_timeout": 24 * 3600,
    "max_allowed_in_request_queue": 4000,
    # A guest waits: ask another peer soon where one stalls.
    "piece_timeout": 3,
    "request_timeout": 6,
    "peer_connect_timeout": 3,
    "handshake_timeout": 5,
    # A block is asked of one peer, unless one stalls: see session_end_game.py.
    "strict_end_game_mode": True,
    # Every connected client is served: one demand read must not wait for a slot.
    "unchoke_slots_limit": -1,
    "choking_algorithm": 0,
    # How soon a new peer is connected to, and a raised piece asked of one that just came.
    "tick_interval": 100,
}

_PEERS: dict[str, object] = {
    # Many nodes share an address: 127.0.0.1, or one behind NAT. Bans go by address and port then.
    "allow_multiple_connections_per_ip": True,
    # A peer that hung up, or comes back, is connected to when data is needed, or within seconds:
    # the failure count (at most 31) never gives up, and peers.py winds it back.
    "min_reconnect_time": 0,
    "max_failcount": 32,
    # An idle torrent is finished to libtorrent, and a finished one that looks for peers strikes
    # out all seeds, for good: once none is left it never looks again (peer_list.cpp,
    # `recalculate_connect_candidates`). So an idle one must not look
    # (findings/libtorrent-forgets-seeds.sh).
    "seeding_outgoing_connections": False,
    # Limits that hold on the local network too.
    "rate_limit_ip_overhead": False,
    "max_metadata_size": MAX_METADATA_SIZE,
    "max_piece_count": MAX_PIECES,
    "urlseed_wait_retry": 2,
}

_RESOURCES: dict[str, object] = {
    "send_buffer_watermark": 1 << 20,
    # The have file is the truth: never look through the data at start.
    "no_recheck_incomplete_resume": True,
    # Alerts carry every piece and block: a burst must fit.
    "alert_queue_size": 100_000,
}
