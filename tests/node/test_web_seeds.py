"""Nodes that get all of an image from HTTP servers: web seeds, mirrors that links name no peer
beside, and servers with a fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.client.traffic import measure_traffic
from tests.support.ports import free_port
from tests.support.programs import Node, Nodes
from tests.support.static_server import (
    Fault,
    busybox_httpd,
    misbehaving,
    nginx,
    python_http_server,
)

from .test_mirrors import (
    CHUNK,
    Published,
    link_to,
    mirror_state,
    publish,
    read,
    state,
)

WAITING = "waiting_after = 0.2\n"


@pytest.fixture
def image(nodes: Nodes, content: bytes, tmp_path: Path) -> Published:
    return publish(nodes.start(), content, tmp_path / "m")


def fetch(node: Node, image: Published) -> dict[str, Any]:
    """Fetch all of an image; what crossed for it, as `fetch --json` tells."""
    before = node.call("status")
    node.call("fetch", torrent=image.layer.torrent)
    after = node.call("status")
    assert state(node, image)["have_bytes"] == len(image.content)
    assert node.call("verify", torrent=image.layer.torrent)["bad"] == []
    return measure_traffic(before, after)


def from_seed_alone(image: Published, url: str) -> str:
    """A link to a web seed and to a peer that is gone: manifest and metadata come otherwise."""
    gone = ("127.0.0.1", free_port())
    return str(replace(image.link, mirrors=(), peers=(gone,), web_seeds=(url,)))


def know(node: Node, image: Published) -> None:
    """Let a node have manifest and metadata, and no content."""
    node.call("resolve", ref=link_to(image, peers=True))
    node.call("layout", torrent=image.layer.torrent)


def test_a_mirror_gives_all_where_no_peer_can_be_reached(nodes: Nodes, image: Published) -> None:
    """What `seed` prints has no `ws=`: where BitTorrent is blocked its URL alone is left."""
    reader = nodes.start()
    link = replace(image.link, peers=(("127.0.0.1", free_port()),))
    assert link.mirrors == (image.url,)
    reader.call("resolve", ref=str(link))
    told = fetch(reader, image)
    assert told["sources"] == {image.url: len(image.content)}  # counted once
    assert len(image.content) < told["bytes_received"] < 1.3 * len(image.content)
    [server] = state(reader, image)["traffic"]["servers"]
    assert server == {"base": image.url, "received": len(image.content)}
    assert state(reader, image)["traffic"]["payload_received"] == len(image.content)


def test_bytes_that_readers_were_given_are_counted_with_their_image(
    nodes: Nodes, image: Published
) -> None:
    reader = nodes.start()
    with nginx(image.directory) as web:
        reader.call("resolve", ref=link_to(image, web.url))
        assert read(reader, image, *CHUNK) == image.chunk()
        traffic = state(reader, image)["traffic"]
        assert traffic["payload_received"] >= CHUNK[1]
        assert [server["base"] for server in traffic["servers"]] == [web.url]


@pytest.mark.parametrize("serve", [python_http_server, busybox_httpd])
def test_a_server_with_few_virtues_will_do(nodes: Nodes, image: Published, serve: Any) -> None:
    """One ignores ranges, so all is taken; one closes each connection."""
    reader = nodes.start()
    with serve(image.directory) as url:
        reader.call("resolve", ref=link_to(image, url))
        assert read(reader, image, *CHUNK) == image.chunk()
        assert set(fetch(reader, image)["sources"]) <= {url}
        error = mirror_state(reader, url)["error"]
    if serve is python_http_server:
        assert "the server ignores ranges" in error
    else:
        assert error is None


def test_a_web_seed_redirects_nobody_to_another_host(nodes: Nodes, image: Published) -> None:
    """To a service that listens for this machine alone, say; and its fault is told."""
    reader = nodes.start(WAITING)
    know(reader, image)
    with misbehaving(image.directory) as secret, misbehaving(image.directory) as seed:
        seed.fault, seed.elsewhere = Fault.REDIRECT, secret.url
        url = f"{seed.url}data/"
        image.node.call("stop")
        reader.call("resolve", ref=from_seed_alone(image, url))
        told: list[str] = []

        def on_event(event: str, fields: dict[str, Any]) -> None:
            if event == "waiting":
                told.extend(fields["tried"])
                seed.fault = None if any(url in each for each in fields["tried"]) else seed.fault

        with reader.connect() as client:
            client.call("fetch", on_event, torrent=image.layer.torrent)
        [fault] = {each for each in told if each.startswith(url)}
        assert "redirects to" in fault
        assert "not followed" in fault
        assert secret.requests == []


@pytest.mark.parametrize("fault", [Fault.SERVER_ERROR, Fault.NOT_FOUND, Fault.CUT_OFF])
def test_a_web_seed_that_is_mended_is_asked_again(
    nodes: Nodes, image: Published, fault: Fault
) -> None:
    """libtorrent never asked one again that had answered 503 once."""
    reader = nodes.start(WAITING)
    know(reader, image)
    with misbehaving(image.directory, fault) as seed:
        url = f"{seed.url}data/"
        image.node.call("stop")
        reader.call("resolve", ref=from_seed_alone(image, url))

        def on_event(event: str, _fields: dict[str, Any]) -> None:
            if event == "waiting":
                seed.fault = None

        with reader.connect() as client:
            client.call("fetch", on_event, torrent=image.layer.torrent)
        assert state(reader, image)["have_bytes"] == len(image.content)
        assert mirror_state(reader, url)["error"] is None


FAULTS = [fault for fault in Fault if fault not in (Fault.HANGS, Fault.STALLS)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_web_seed_that_misbehaves_costs_no_right_byte(
    nodes: Nodes, image: Published, fault: Fault
) -> None:
    reader = nodes.start()
    with misbehaving(image.directory, fault) as seed, nginx(image.directory) as good:
        seeds = (f"{seed.url}data/", f"{good.url}data/")
        link = replace(image.link, mirrors=(), web_seeds=seeds)
        reader.call("resolve", ref=str(link))
        for at in range(0, len(image.content) - 100, 30_000):
            right = image.content[at : at + 100]
            # Who reads compares with its own hashes.
            if read(reader, image, at, 100) != right:
                assert fault is Fault.WRONG_BYTES
                assert read(reader, image, at, 100, heal=True) == right
        fetch(reader, image)
    assert state(reader, image)["have_bytes"] == len(image.content)


def test_a_web_seed_of_a_mirror_is_that_mirror(nodes: Nodes, image: Published) -> None:
    reader = nodes.start()
    with nginx(image.directory) as web:
        reader.call("resolve", ref=link_to(image, web.url, seeds=True))
        assert fetch(reader, image)["sources"] == {web.url: len(image.content)}
        assert [each["base"] for each in reader.call("status")["mirrors"]] == [web.url]
