"""Running a node: builds everything in one place and one nursery, and takes it down in order."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any

import trio

from p2pcloop.errors import BusyError, UsageError
from p2pcloop.formats.config import Config, hint_of_listen, load_config
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloop.words import tr
from p2pcloopd.control_server import Call, open_listener, passed_listener, serve_control
from p2pcloopd.engine.bt.settings import EngineSettings
from p2pcloopd.engine.disk.seeding import OLD_PREFIX
from p2pcloopd.engine.engine import Engine, open_engine
from p2pcloopd.http.server import open_http_listener, serve_http
from p2pcloopd.http.wire import Pace, Wire
from p2pcloopd.log_output import LogOutput
from p2pcloopd.node.directories import LINKS_PREFIX
from p2pcloopd.node.discovery import discover
from p2pcloopd.node.http_files import NodeFiles
from p2pcloopd.node.manifests import MANIFEST_PREFIX
from p2pcloopd.node.metrics import MetricsSite
from p2pcloopd.node.node import Node
from p2pcloopd.node.operations import OPERATIONS
from p2pcloopd.node.ports import choose_ports
from p2pcloopd.resolver import install as install_resolver

_log = logging.getLogger(__name__)

_TRIES = 5
"""So often ports are chosen at the first start."""


async def run_node(
    home: Home,
    ready: Callable[[list[str]], None],
    log: LogOutput,
    passed: socket.socket | None = None,
) -> None:
    """Run a node on `home` until it is stopped or cancelled.

    Args:
        home: made if it is not there.
        ready: called once clients can connect, with what the user should know.
        log: of this process.
        passed: the control socket that a service manager made; None: it is made here.

    Raises:
        BusyError: another p2pcloopd runs on this home, or a port is taken.
        UsageError: config.toml or the home is not as it must be.
        FormatError, StorageError: the state on disk cannot be used.
    """
    install_resolver()
    home.create()
    with home.locked():
        config = load_config(home.config)
        log.set_up(config.log_level, config.log_format)
        records = Records(home)
        _clear_tmp(home)
        async with AsyncExitStack() as stack:
            engine, http, warnings = await _listen(home, config, stack)
            await engine.restore()
            node = Node(home, config, engine, records, log, warnings)
            control = (
                open_listener(home.control_socket) if passed is None else passed_listener(passed)
            )
            await _serve(node, control, http, ready)


async def _listen(
    home: Home, config: Config, stack: AsyncExitStack
) -> tuple[Engine, list[trio.SocketListener], list[str]]:
    """Open the engine and the listeners for HTTP, which the stack closes.

    A port that was chosen just now may be another node's before this one listens there: then they
    are chosen anew, since no link names them.

    Returns:
        Both, and what the user should know.

    Raises:
        BusyError: a port is taken.
        UsageError: it cannot listen where it was told to.
    """
    option = home.option
    hint = hint_of_listen("listen" if config.http.listen is None else "http.listen", option)
    for tries_left in reversed(range(_TRIES)):
        is_first = not home.ports.exists()
        warnings: list[str] = []
        listen, http_listen = choose_ports(
            home.ports, config.listen, config.http.listen, warnings.append, option
        )
        for warning in warnings:
            _log.warning("%s", warning)
        async with AsyncExitStack() as opened:
            try:
                http = [
                    await opened.enter_async_context(await open_http_listener(*address, hint))
                    for address in http_listen
                ]
                settings = _engine_settings(config, listen)
                engine = await opened.enter_async_context(open_engine(settings, home.torrents))
            except (BusyError, UsageError) as err:
                if not (isinstance(err, BusyError) and is_first and tries_left):
                    err.hint = err.hint or hint_of_listen("listen", option)
                    raise
                home.ports.unlink(missing_ok=True)
            else:
                stack.push_async_exit(opened.pop_all())
                return engine, http, warnings
    raise AssertionError("the last try has raised or returned")


def _clear_tmp(home: Home) -> None:
    """Delete what a p2pcloopd or a command that was killed left there."""
    home.clear_staging()
    for prefix in (MANIFEST_PREFIX, LINKS_PREFIX, OLD_PREFIX):
        for left in home.tmp.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)


async def _serve(
    node: Node,
    control: AbstractContextManager[trio.SocketListener],
    http: Sequence[trio.SocketListener],
    ready: Callable[[list[str]], None],
) -> None:
    async def perform(call: Call) -> dict[str, Any]:
        operation = OPERATIONS.get(call.op)
        if operation is None:
            raise UsageError(tr("p2pcloopd has no operation {op!r}", op=call.op))
        return await operation(node, call)

    with control as listener:
        async with trio.open_nursery() as nursery:
            node.http_listen = [each.socket.getsockname()[:2] for each in http]
            if http:
                site = NodeFiles(node)
                await nursery.start(serve_http, http, site, node.http_served, node.http_pace)
            await _serve_metrics(node, nursery)
            await nursery.start(discover, node)
            nursery.start_soon(node.reports.run)
            await nursery.start(serve_control, listener, perform)
            _log.info("serving %s, peers at %s", node.home.root, node.engine.listen_ports)
            ready(node.warnings)
            nursery.start_soon(node.room.run)
            nursery.start_soon(node.web_page.run)
            await node.stopping.wait()
            nursery.cancel_scope.cancel()
        await node.http_client.aclose()


async def _serve_metrics(node: Node, nursery: trio.Nursery) -> None:
    listening = [
        await open_http_listener(*each, hint_of_listen("metrics.listen", node.home.option))
        for each in node.config.metrics.listen
    ]
    node.metrics_listen = [each.socket.getsockname()[:2] for each in listening]
    if listening:
        # What it asks of the node is no traffic of the node.
        await nursery.start(serve_http, listening, MetricsSite(node), Wire(), Pace(0))


def _engine_settings(config: Config, listen: Iterable[tuple[str, int]]) -> EngineSettings:
    return EngineSettings(
        listen=tuple(listen),
        dht=config.discovery.dht,
        dht_nodes=config.discovery.dht_nodes,
        trackers=config.discovery.trackers,
        announce_trackers=config.discovery.announce_trackers,
        lsd=config.discovery.lsd,
        upnp=config.discovery.upnp,
        natpmp=config.discovery.natpmp,
        download_rate=config.download_limit,
        upload_rate=config.upload_limit,
    )
