"""The node as its operations see it: home, settings, torrents and names."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import trio

from p2pcloop.formats.link import Link, format_peer
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloopd.engine.engine import Engine
from p2pcloopd.engine.torrent import Torrent
from p2pcloopd.node.config import Config
from p2pcloopd.node.lookup import Mirror, RecordSource
from p2pcloopd.node.room import Room


class Node:
    """What the operations work on.

    Attributes:
        home: where the state lies.
        config: what the user set.
        engine: the torrents.
        records: manifests and names.
        records_lock: held while records are changed.
        sources: who is asked for records of names, besides the mirrors that a link names.
        open_mirror: makes the reader of a mirror from its base (a URL, or an absolute directory),
            or None while there is none.
        room: keeps the store within its quota.
        stopping: set it to stop the node in order.
    """

    def __init__(self, home: Home, config: Config, engine: Engine, records: Records) -> None:
        self.home = home
        self.config = config
        self.engine = engine
        self.records = records
        self.records_lock = trio.Lock()
        self.sources: list[RecordSource] = []
        self.open_mirror: Callable[[str], Mirror] | None = None
        self.room = Room(home, engine, config.quota)
        self.stopping = trio.Event()
        self._started = trio.current_time()

    def addresses(self) -> list[tuple[str, int]]:
        """Where peers reach this node, as links tell it."""
        return reachable(self.engine.listen_ports)

    def mirrors(self, bases: Iterable[str]) -> list[Mirror]:
        """Readers of mirrors."""
        return [] if self.open_mirror is None else [self.open_mirror(base) for base in bases]

    def finds_peers(self, link: Link) -> bool:
        """Whether peers may be found that the link does not name."""
        discovery = self.config.discovery
        return discovery.dht or discovery.lsd or (discovery.trackers and bool(link.trackers))

    async def add(
        self,
        info_hash: bytes,
        peers: Iterable[tuple[str, int]],
        trackers: Iterable[str],
        web_seeds: Iterable[str],
    ) -> Torrent:
        """Know a torrent and where to look for it."""
        return await self.engine.add(
            info_hash,
            peers=peers,
            trackers=trackers,
            web_seeds=web_seeds,
        )

    async def status(self) -> dict[str, Any]:
        """The node's state, as the control protocol tells it."""
        statistics = asdict(await self.engine.statistics())
        return {
            "pid": os.getpid(),
            "home": str(self.home.root),
            "uptime": trio.current_time() - self._started,
            "listen": [format_peer(peer) for peer in self.engine.listen_ports],
        } | statistics


def reachable(listening: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """What a link may name: loopback only where there is nothing else, link-local never."""
    found = [(ipaddress.ip_address(host), port) for host, port in listening]
    found = [(host, port) for host, port in found if not host.is_link_local]
    distant = [(host, port) for host, port in found if not host.is_loopback]
    return [(str(host), port) for host, port in distant or found]
