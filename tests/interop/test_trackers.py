"""Peers that the user did not name are found by trackers, where the user wants these."""

from __future__ import annotations

from functools import partial

import pytest

from p2pcloop.client.control_client import ControlClient
from p2pcloop.formats.link import Link
from tests.support.foreign import aria2, libtorrent, seeding
from tests.support.programs import Node, Nodes
from tests.support.tracker import Tracker, tracker
from tests.support.waiting import wait_until

from .conftest import Published, publish

pytestmark = pytest.mark.interop

NOBODY = "http://127.0.0.1:9/"
"""A web seed that is not there."""

WANTED = "[discovery]\ntrackers = true"


def make_public(node: Node, link: Link) -> None:
    """Have a node announce what it seeds."""
    manifest = (node.home.manifests / link.manifest_id.hex()).read_bytes()
    with ControlClient.connect(node.home) as client:
        client.call("seed_manifest", manifest=manifest, public=True)


def announced_by_us(known: Tracker, nodes: Nodes) -> Published:
    published = publish(nodes, f'[discovery]\nannounce_trackers = ["{known.url}"]')
    make_public(published.node, published.link)
    for content in published.contents():
        wait_until(partial(known.peers, content.info_hash), "we do not announce")
    return published


def test_a_public_image_is_found(nodes: Nodes) -> None:
    with tracker() as known:
        published = announced_by_us(known, nodes)
        reader = nodes.make(WANTED)
        out = nodes.directory / "out.img"
        link = published.link_with(peers=(), mirrors=(), trackers=(known.url,))
        reader.run("export", link, out)
        assert out.read_bytes() == published.raw


def test_a_client_that_announces_is_found(nodes: Nodes, published: Published) -> None:
    with tracker() as known, libtorrent() as foreign:
        for content in published.contents(known.url):
            seeding(foreign, content)
            wait_until(partial(known.peers, content.info_hash), "libtorrent does not announce")
        published.node.run("daemon", "stop")
        reader = nodes.make(WANTED)
        out = nodes.directory / "out.img"
        link = published.link_with(peers=(), mirrors=(), trackers=(known.url,))
        reader.run("export", link, out)
        assert out.read_bytes() == published.raw


def test_nothing_is_announced_unasked(nodes: Nodes, published: Published) -> None:
    """Neither what is seeded nor what is read, whatever the link names."""
    with tracker() as known:
        reader = nodes.make()
        link = published.link_with(trackers=(known.url,))
        reader.run("fetch", link)
        published.node.run("fetch", link)
        for node in (reader, published.node):
            node.run("daemon", "stop")  # who had announced would say that it stops
        assert known.announces == ()


def test_aria2_opens_our_link(nodes: Nodes) -> None:
    """As it stands, with all that it has for us alone; the tracker tells it where we are."""
    with tracker() as known, aria2() as foreign:
        published = announced_by_us(known, nodes)
        foreign.open(published.link_with(trackers=(known.url,), web_seeds=("http://127.0.0.1:9/",)))
        layer, _ = published.contents()
        wait_until(partial(foreign.complete, layer.info_hash), "aria2 is not complete")
        assert layer.read(foreign.directory) == layer.read()
