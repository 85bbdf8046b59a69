"""The node as its operations see it: home, settings, torrents and names."""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import trio

from p2pcloop.formats.config import Config
from p2pcloop.formats.link import Link, format_peer
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloopd.engine.engine import Engine
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.http.client import HttpClient
from p2pcloopd.http.mirrors import MirrorReader, Mirrors
from p2pcloopd.http.wire import Pace, Wire
from p2pcloopd.log_output import LogOutput
from p2pcloopd.names.dht import Announcer
from p2pcloopd.names.lookup import RecordSource
from p2pcloopd.node.catalogue import Catalogue
from p2pcloopd.node.dispatch_log import DispatchLog
from p2pcloopd.node.growing_sum import GrowingSum
from p2pcloopd.node.link_places import LinkPlaces
from p2pcloopd.node.room import Room
from p2pcloopd.node.servers import Layers
from p2pcloopd.node.waiting import Reports
from p2pcloopd.node.web_page import WebPage

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Node:
    """What the operations work on.

    Attributes:
        home: where the state lies.
        config: what the user set.
        engine: the torrents.
        records: manifests and names.
        log: of this process.
        link_places: where its links led so far.
        records_lock: held while records are changed.
        sources: who is asked for records of names, besides the mirrors that a link names.
        announcer: keeps what is public in the DHT, or None where that is not used.
        readers: the mirrors that are known.
        layers: the HTTP servers of layers.
        http_client: by which mirrors are asked.
        http_listen: (address, port) of each socket on which this node serves over HTTP.
        http_served: what crossed to those who asked there.
        dispatched: which pieces went to clients of a crowd just now.
        room: keeps the store within its quota.
        reports: tells clients of operations that take long.
        web_page: served to browsers on this machine, once it is asked for.
        resolving: torrents that were not known before links named them, and how many calls wait to
            know whether the links are good.
        stopping: set it to stop the node in order.
        warnings: what its user should know since it started.
        started: when, in trio's time.
        catalogue: what its torrents belong to.
        sums: of what its torrents count, by what that is.
        metrics_listen: (address, port) of each socket on which it serves metrics.
    """

    def __init__(
        self,
        home: Home,
        config: Config,
        engine: Engine,
        records: Records,
        log: LogOutput,
        warnings: Sequence[str] = (),
    ) -> None:
        self.home = home
        self.config = config
        self.engine = engine
        self.records = records
        self.log = log
        self.link_places = LinkPlaces(home.link_places)
        self.records_lock = trio.Lock()
        self.sources: list[RecordSource] = []
        self.announcer: Announcer | None = None
        self.http_client = HttpClient(config.download_limit)
        self.readers = Mirrors(self.http_client)
        self.layers = Layers(self.http_client.wire, self.readers)
        self.http_listen: list[tuple[str, int]] = []
        self.http_served = Wire()
        self.http_pace = Pace(config.upload_limit)
        self.dispatched = DispatchLog()
        self.room = Room(home, engine, config.quota)
        self.reports = Reports(config.waiting_after)
        self.web_page = WebPage(home, log)
        self.resolving = Counter[bytes]()
        self.stopping = trio.Event()
        self.warnings = list(warnings)
        self.catalogue = Catalogue(records)
        self.sums = defaultdict[str, GrowingSum](GrowingSum)
        self.metrics_listen: list[tuple[str, int]] = []
        self.started = trio.current_time()

    def set_up(self, config: Config) -> None:
        """Take over other settings, as far as they are live (`Setting`)."""
        self.config = replace(
            self.config,
            upload_limit=config.upload_limit,
            download_limit=config.download_limit,
            waiting_after=config.waiting_after,
            quota=config.quota,
            log_level=config.log_level,
            log_format=config.log_format,
            discovery=replace(self.config.discovery, mirrors=config.discovery.mirrors),
        )
        self.engine.set_rates(config.download_limit, config.upload_limit)
        self.http_pace.set_rate(config.upload_limit)
        self.http_client.pace.set_rate(config.download_limit)
        self.reports.after = config.waiting_after
        self.room.set_quota(config.quota)
        self.log.set_up(config.log_level, config.log_format)

    def addresses(self) -> list[tuple[str, int]]:
        """Where peers reach this node, as links tell it."""
        return reachable(self.engine.listen_ports)

    def urls(self) -> list[str]:
        """Under which base URLs this node serves, as links tell it."""
        return [f"http://{format_peer(peer)}/" for peer in reachable(self.http_listen)]

    def mirrors(self, bases: Iterable[str]) -> list[MirrorReader]:
        """Readers of mirrors. Links name this node, too, and it is not asked for what it lacks."""
        own = self.urls()
        return [self.readers.open(base) for base in bases if base not in own]

    def finds_peers(self, link: Link) -> bool:
        """Whether peers may be found that the link does not name."""
        discovery = self.config.discovery
        return discovery.dht or discovery.lsd or (discovery.trackers and bool(link.trackers))

    def announces(self) -> bool:
        """Whether public images are announced anywhere."""
        discovery = self.config.discovery
        dht = discovery.dht and bool(discovery.dht_nodes)
        return dht or discovery.lsd or bool(discovery.announce_trackers)

    async def add(
        self,
        info_hash: bytes,
        peers: Iterable[tuple[str, int]],
        trackers: Iterable[str],
        web_seeds: Iterable[str],
    ) -> Torrent:
        """Know a torrent and where to look for it, trackers only if the user wants those."""
        return await self.engine.add(
            info_hash,
            peers=peers,
            trackers=trackers if self.config.discovery.trackers else (),
            web_seeds=web_seeds,
        )

    async def add_layer(self, layer: LayerRef, link: Link, mirrors: Iterable[str] = ()) -> Torrent:
        """Know a layer's torrent and where to look for it.

        Args:
            link: where it may be had.
            mirrors: more bases of mirrors that may have it.
        """
        readers = self.mirrors(dict.fromkeys([*mirrors, *link.mirrors]))
        elsewhere = None
        servers = self.layers.know(layer, readers)
        if readers:
            alone = not link.peers and not self.finds_peers(link)
            elsewhere = partial(servers.info, alone=alone)
        torrent = await self.engine.add(
            layer.torrent,
            peers=link.peers,
            trackers=link.trackers if self.config.discovery.trackers else (),
            web_seeds=link.web_seeds,
            elsewhere=elsewhere,
        )
        web_seeds = torrent.peers.sources.web_seeds  # those of earlier links, too
        torrent.servers = self.layers.know(layer, (), web_seeds)
        return torrent


def reachable(listening: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """What a link may name: loopback only where there is nothing else, link-local never."""
    found = [(_address_of(ipaddress.ip_address(host)), port) for host, port in listening]
    found = [(host, port) for host, port in found if not host.is_link_local]
    distant = [(host, port) for host, port in found if not host.is_loopback]
    return [(str(host), port) for host, port in distant or found]


def _address_of(listening: _Address) -> _Address:
    """For "every address of this machine" the one from which it would reach the internet."""
    if not listening.is_unspecified:
        return listening
    family, far, loopback = (
        (socket.AF_INET, "192.0.2.1", "127.0.0.1")  # RFC 5737: for documentation
        if listening.version == 4
        else (socket.AF_INET6, "2001:db8::1", "::1")  # RFC 3849
    )
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))  # sends nothing: the system looks at its routes
            return ipaddress.ip_address(probe.getsockname()[0])
    except OSError:
        return ipaddress.ip_address(loopback)
