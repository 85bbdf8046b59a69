"""What `status` tells of a node, as lines and as a screen: its torrents, put together by images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from p2pcloop.cli.guest_facts import guest_facts
from p2pcloop.store.guests import list_guests
from p2pcloop.store.home import Home
from p2pcloop.text import printable
from p2pcloop.words import tr

STALLED_SECONDS = 1
"""Without data for so long a torrent that is wanted is said to wait."""

_OF_IMAGES: dict[str, Any] = {"whole": False, "sources": ()}
_OF_TORRENTS: dict[str, Any] = {
    "image": None,
    "version": None,
    "kind": None,
    "wanted": False,
    "stalled": 0.0,
    "tried": [],
}
"""What a p2pcloopd that was started before an upgrade does not tell."""


def look(home: Home, node: dict[str, Any]) -> dict[str, Any]:
    """The node's status and the guests that run, as `status --json` tells them."""
    guests = [guest_facts(guest) for guest in list_guests(home) if guest.state == "running"]
    for guest in guests:
        del guest["display"]  # its password: what is told here is sent to others who help
    images = [_OF_IMAGES | image for image in node.get("images", ())]
    torrents = [_OF_TORRENTS | torrent for torrent in node["torrents"]]
    return node | {"images": images, "torrents": torrents, "guests": guests}


def torrents_of(
    image: dict[str, Any], torrents: dict[bytes, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The torrents of an image's layers and source layers, as far as the node has them."""
    used = (*image["torrents"], *image["sources"])
    return [torrents[layer] for layer in used if layer in torrents]


def other_torrents(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The torrents that no newest version of a name needs: neither layers of it nor source layers,
    nor its manifest."""
    told = {
        torrent
        for image in node["images"]
        for torrent in (*image["torrents"], *image["sources"], image["manifest_torrent"])
    }
    return [torrent for torrent in node["torrents"] if torrent["info_hash"] not in told]


def describe_torrent(torrent: dict[str, Any]) -> str:
    """What a torrent is, for people: of which image it is a part."""
    if torrent["image"] is None:
        return printable(torrent["name"] or tr("metadata not here yet"))
    version = tr("{image}, version {version}", image=torrent["image"], version=torrent["version"])
    return (
        tr("manifest of {version}", version=version) if torrent["kind"] == "manifest" else version
    )


def share_here(facts: dict[str, Any]) -> tuple[int, int]:
    """Bytes of an image or a torrent that are here, and in all: 0 of a torrent whose metadata is
    not here."""
    return facts["have_bytes"] + facts["provisional_bytes"], facts["size"] or 0


def peers_of(torrents: Iterable[dict[str, Any]]) -> int:
    """How many peers are connected for torrents."""
    return len(
        {
            peer["address"]
            for torrent in torrents
            for peer in torrent["traffic"]["peers"]
            if peer["connected"]
        }
    )


def waiting_of(torrents: Iterable[dict[str, Any]]) -> tuple[float, str] | None:
    """For how many seconds torrents wait for data, and for what; None where none does."""
    waiting = [each for each in torrents if each["stalled"] >= STALLED_SECONDS]
    if not waiting:
        return None
    most = max(waiting, key=lambda each: float(each["stalled"]))
    what = tr("data") if most["size"] else tr("its metadata")
    tried = ", ".join(most["tried"])
    return most["stalled"], tr(
        "{what}; tried: {tried}", what=what, tried=printable(tried)
    ) if tried else tr("{what}; no peer", what=what)
