"""The node's state, as the control protocol tells it (docs/formats/control.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import trio

from p2pcloop.formats.link import format_peer
from p2pcloopd.engine.fetch.swarm import (
    PeerStatistics,
    ServerStatistics,
    TorrentStatistics,
    Traffic,
)
from p2pcloopd.node.catalogue import ListedImage, Part
from p2pcloopd.node.node import Node

_Statistics = TorrentStatistics | Traffic | PeerStatistics | ServerStatistics

_FIELDS = {
    kind: tuple(field.name for field in fields(kind))
    for kind in (TorrentStatistics, Traffic, PeerStatistics, ServerStatistics)
}
"""`dataclasses.asdict` takes ten times as long: there may be a thousand torrents."""


async def describe(node: Node) -> dict[str, Any]:
    """What the node has and does now."""
    statistics = await node.engine.statistics()
    torrents = {each.info_hash: each for each in statistics.torrents}
    images = await node.catalogue.images()
    parts = await node.catalogue.parts(torrents, images)
    wire, served = node.http_client.wire, node.http_served
    return {
        "pid": os.getpid(),
        "home": str(node.home.root),
        "warnings": node.warnings,
        "uptime": trio.current_time() - node.started,
        "listen": [format_peer(peer) for peer in node.engine.listen_ports],
        "http": {
            "listen": [format_peer(peer) for peer in node.http_listen],
            "received": served.received,
            "sent": served.sent,
        },
        "metrics": {"listen": [format_peer(peer) for peer in node.metrics_listen]},
        "mirrors": _mirrors(node),
        "images": [_image(image, torrents) for image in images],
        "torrents": [_torrent(each, parts.get(each.info_hash)) for each in torrents.values()],
        "received": statistics.received + wire.received + served.received,
        "sent": statistics.sent + wire.sent + served.sent,
    }


def _mirrors(node: Node) -> list[dict[str, Any]]:
    awaited = node.layers.awaited(node.engine.torrents)
    return [
        {
            "base": each.base,
            "received": each.received,
            "error": each.fault if each.base in awaited else each.error,
        }
        for each in node.readers.known
    ]


def _image(image: ListedImage, torrents: Mapping[bytes, TorrentStatistics]) -> dict[str, Any]:
    found = [torrents[layer] for layer in image.used if layer in torrents]
    have = sum(each.have_bytes for each in found)
    return {
        "name": image.name,
        "version": image.version,
        "torrents": image.torrents,
        "sources": image.sources,
        "manifest_torrent": image.manifest_torrent,
        "size": image.stored,
        "have_bytes": have,
        "provisional_bytes": sum(each.provisional_bytes for each in found),
        "whole": 0 < image.stored <= have,
    }


def _torrent(torrent: TorrentStatistics, part: Part | None) -> dict[str, Any]:
    traffic = torrent.traffic
    return _plain(torrent) | {
        "image": None if part is None else part.image,
        "version": None if part is None else part.version,
        "kind": None if part is None else part.kind,
        "traffic": _plain(traffic)
        | {
            "peers": [_plain(peer) for peer in traffic.peers],
            "servers": [_plain(server) for server in traffic.servers],
        },
    }


def _plain(
    value: TorrentStatistics | Traffic | PeerStatistics | ServerStatistics,
) -> dict[str, Any]:
    return {name: getattr(value, name) for name in _FIELDS[type(value)]}


class Changes:
    """Makes of one status after the other what changed since the last, for a client that keeps it:
    a node may have a thousand torrents, of which few move."""

    def __init__(self) -> None:
        self._torrents: dict[object, Any] = {}
        self._images: dict[object, Any] = {}

    def since_last(self, status: dict[str, Any]) -> dict[str, Any]:
        """A status with the images and torrents that differ from those of the last one.

        `gone` has the info hashes, and `gone_images` the names, of those that are there no more.
        """
        torrents = {each["info_hash"]: each for each in status["torrents"]}
        images = {each["name"]: each for each in status["images"]}
        told = status | {
            "torrents": _changed(self._torrents, torrents),
            "images": _changed(self._images, images),
            "gone": [each for each in self._torrents if each not in torrents],
            "gone_images": [each for each in self._images if each not in images],
        }
        self._torrents, self._images = torrents, images
        return told


def _changed(before: Mapping[object, Any], now: Mapping[Any, Any]) -> list[Any]:
    return [value for key, value in now.items() if before.get(key) != value]
