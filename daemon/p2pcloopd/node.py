"""The node: the one place that builds everything, in one nursery, and takes it down in order."""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import trio

from p2pcloop.errors import UsageError
from p2pcloop.formats.link import format_peer
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloopd.config import Config, load_config
from p2pcloopd.control_server import Call, open_listener, serve_control
from p2pcloopd.engine import Engine, open_engine
from p2pcloopd.operations import MANIFEST_PREFIX, OPERATIONS
from p2pcloopd.ports import choose_ports
from p2pcloopd.seeding import OLD_PREFIX
from p2pcloopd.settings import EngineSettings
from p2pcloopd.torrent import Torrent

_log = logging.getLogger(__name__)


class Node:
    """What the operations work on.

    Attributes:
        home: where the state lies.
        config: what the user set.
        engine: the torrents.
        records: manifests and names.
        records_lock: held while records are changed.
        stopping: set it to stop the node in order.
    """

    def __init__(self, home: Home, config: Config, engine: Engine, records: Records) -> None:
        self.home = home
        self.config = config
        self.engine = engine
        self.records = records
        self.records_lock = trio.Lock()
        self.stopping = trio.Event()
        self._started = trio.current_time()

    def addresses(self) -> list[tuple[str, int]]:
        """Where peers reach this node, as links tell it."""
        return reachable(self.engine.listen_ports)

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


async def run_node(home: Home, ready: Callable[[], None]) -> None:
    """Run a node on `home` until it is stopped or cancelled.

    Args:
        home: made if it is not there.
        ready: called once clients can connect.

    Raises:
        BusyError: another p2pcloopd runs on this home, or a port is taken.
        UsageError: config.toml or the home is not as it must be.
        FormatError, StorageError: the state on disk cannot be used.
    """
    home.create()
    with home.locked():
        config = load_config(home.config)
        records = Records(home)
        _clear_tmp(home)
        listen = choose_ports(home.ports, config.listen)
        async with open_engine(_engine_settings(config, listen), home.torrents) as engine:
            await engine.restore()
            await _serve(Node(home, config, engine, records), ready)


def _clear_tmp(home: Home) -> None:
    """Delete what only a p2pcloopd makes there, and one that was killed left."""
    for prefix in (MANIFEST_PREFIX, OLD_PREFIX):
        for left in home.tmp.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)


async def _serve(node: Node, ready: Callable[[], None]) -> None:
    async def perform(call: Call) -> dict[str, Any]:
        operation = OPERATIONS.get(call.op)
        if operation is None:
            raise UsageError(f"p2pcloopd has no operation {call.op!r}")
        return await operation(node, call)

    with open_listener(node.home.control_socket) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, listener, perform)
            _log.info("serving %s, peers at %s", node.home.root, node.engine.listen_ports)
            ready()
            await node.stopping.wait()
            nursery.cancel_scope.cancel()


def _engine_settings(config: Config, listen: Iterable[tuple[str, int]]) -> EngineSettings:
    return EngineSettings(
        listen=tuple(map(format_peer, listen)),
        dht=config.discovery.dht,
        lsd=config.discovery.lsd,
        upnp=config.discovery.upnp,
        natpmp=config.discovery.natpmp,
        download_rate=config.download_limit,
        upload_rate=config.upload_limit,
    )
