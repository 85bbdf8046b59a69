"""The facts of a node, its images and its guests, as the page shows them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import trio

from p2pcloop.store.guests import GuestState, list_guests
from p2pcloop.store.home import Home
from p2pcloop.store.pins import load_pins
from p2pcloop.text import printable

MAX_PEERS = 50
"""Peers that are shown: those that move most."""


class NodeView:
    """What p2pcloopd told last.

    Attributes:
        fresh: set once it told anything.
    """

    def __init__(self, home: Home) -> None:
        self.fresh = trio.Event()
        self._home = home
        self._node: dict[str, Any] = {}
        self._since = 0
        self._torrents: dict[bytes, dict[str, Any]] = {}
        self._images: dict[str, dict[str, Any]] = {}
        self._shown: dict[str, dict[str, Any]] = {}

    def take(self, _event: str, status: dict[str, Any]) -> None:
        """Take an event of `watch`: what changed since the one before."""
        if not self._node:
            self._since = int(time.time() - status["uptime"])  # else it would change by a second
        self._node = status
        torrents = {each["info_hash"]: each for each in status["torrents"]}
        images = {each["name"]: each for each in status["images"]}
        self._torrents |= torrents
        self._images |= images
        for torrent in status.get("gone", ()):
            self._torrents.pop(torrent, None)
        for name in status.get("gone_images", ()):
            self._images.pop(name, None)
            self._shown.pop(name, None)
        for name, image in self._images.items():
            if name in images or not torrents.keys().isdisjoint(_used(image)):
                self._shown[name] = self._image(image)
        self.fresh.set()

    def facts(self) -> dict[str, Any]:
        """For the page."""
        node = self._node
        peers = self._peers()
        return {
            "node": {
                "home": node["home"],
                "pid": node["pid"],
                "since": self._since,
                "listen": node["listen"],
                "http": node["http"]["listen"],
                "warnings": [printable(each) for each in node["warnings"]],
                "mirrors": node["mirrors"],
            },
            "traffic": {
                "received": node["received"],
                "sent": node["sent"],
                "down": sum(each["down"] for each in self._shown.values()),
                "up": sum(each["up"] for each in self._shown.values()),
                "peers": sum(each["connected"] for each in peers),
            },
            "images": dict(self._shown),
            "peers": peers[:MAX_PEERS],
            "pinned": sorted(each.hex() for each in load_pins(self._home)),
        }

    def _image(self, image: Mapping[str, Any]) -> dict[str, Any]:
        torrents = [self._torrents[each] for each in _used(image) if each in self._torrents]
        traffic = [each["traffic"] for each in torrents]
        return {
            "version": image["version"],
            "size": image["size"],
            "here": image["have_bytes"] + image["provisional_bytes"],
            "whole": image.get("whole", False),  # a p2pcloopd of before does not tell
            "down": sum(each["down_rate"] for each in traffic),
            "up": sum(each["up_rate"] for each in traffic),
            "peers": len({p["address"] for t in traffic for p in t["peers"] if p["connected"]}),
            "trouble": next((each["reason"] for each in torrents if each.get("reason")), None),
        }

    def _peers(self) -> list[dict[str, Any]]:
        """All peers and servers of all torrents, those that move most first."""
        found: dict[str, dict[str, Any]] = {}

        def add(address: str, *, connected: bool, amounts: Mapping[str, int]) -> None:
            known = found.setdefault(address, {"address": address, "connected": False} | _NOTHING)
            known["connected"] |= connected
            for key, field in _PEER_FIELDS.items():
                known[key] += amounts.get(field, 0)

        for torrent in self._torrents.values():
            for peer in torrent["traffic"]["peers"]:
                add(peer["address"], connected=peer["connected"], amounts=peer)
            for server in torrent["traffic"]["servers"]:
                add(server["base"], connected=True, amounts=server)
        return sorted(found.values(), key=_activity, reverse=True)


def _used(image: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The torrents of its layers and source layers; a p2pcloopd of before does not tell these."""
    return (*image["torrents"], *image.get("sources", ()))


_PEER_FIELDS = {"received": "received", "sent": "sent", "down": "down_rate", "up": "up_rate"}
_NOTHING = dict.fromkeys(_PEER_FIELDS, 0)


def _activity(peer: Mapping[str, Any]) -> tuple[bool, int, int]:
    return peer["connected"], peer["down"] + peer["up"], peer["received"] + peer["sent"]


def guest_facts(home: Home) -> list[dict[str, Any]]:
    """The guests of a home, those that were started last first."""
    return [_guest(guest) for guest in reversed(list_guests(home))]


def _guest(guest: GuestState) -> dict[str, Any]:
    record, display = guest.record, guest.record.display or {}
    return {
        "name": record.name,
        "image": printable(record.image),
        "version": record.version,
        "state": guest.state,
        "started": record.started,
        "ended": record.ended,
        "reason": record.reason,
        "exit_code": record.exit_code,
        "error": None if record.error is None else printable(record.error),
        "overlay": None if record.overlay is None else printable(record.overlay),
        "memory": record.memory,
        "network": " ".join([record.network, *filter(None, [record.address]), *record.ports]),
        "boot_seconds": record.boot_seconds,
        "fetched": guest.fetched,
        "waiting": None if guest.waiting is None else guest.waiting.what,
        "waiting_since": None if guest.waiting is None else guest.waiting.since,
        "display": None if not display else display.get("kind"),
        "display_link": display.get("link"),
    }
