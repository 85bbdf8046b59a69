"""Finding nodes, and being found, by the ways that the settings turn on."""

from __future__ import annotations

import logging

import trio

from p2pcloopd.names.dht import Announcer, DhtSource
from p2pcloopd.node.node import Node

_log = logging.getLogger(__name__)


async def discover(
    node: Node, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Add the sources of records that the user turned on, and keep what is public announced."""
    async with trio.open_nursery() as nursery:
        dht = node.engine.dht
        if dht is not None:
            node.sources.append(DhtSource(dht))
            node.announcer = Announcer(dht, node.engine, node.records, node.home.keys)
            nursery.start_soon(node.announcer.run)
            if not node.config.discovery.dht_nodes:
                _log.warning(
                    "the DHT is on, but no node of it is set:"
                    " `p2pcloop config set discovery.dht_nodes HOST:PORT %s`",
                    node.home.option,
                )
        if node.config.discovery.lan:
            _join_lan(node, nursery)
        task_status.started()
        await trio.sleep_forever()


def _join_lan(node: Node, nursery: trio.Nursery) -> None:
    from p2pcloopd.names.lan import Lan, LanSource, own_endpoints  # noqa: PLC0415  0.1 s, asyncio

    own = own_endpoints(node.engine.listen_ports, node.http_listen)
    if own is None:
        _log.warning("`lan` is on, but `listen` names no IPv4 address: no node is looked for")
        return

    def changed() -> None:
        node.engine.set_neighbours(
            peer for endpoints in lan.nodes.values() for peer in endpoints.peers
        )

    lan = Lan(own, changed)
    node.sources.append(LanSource(lan, node.readers.open))
    nursery.start_soon(lan.run)
