"""Boots from what others wrote: a BitTorrent client, a web server, and both beside p2pcloop."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcloop.formats.link import Link, parse_link, parse_peer
from tests.support.foreign import Content, hurried, seeding, transmission
from tests.support.programs import Guest, Node, Nodes
from tests.support.static_server import nginx
from tests.support.waiting import BOUND

from .conftest import DATA

pytestmark = pytest.mark.e2e

MD5 = hashlib.md5(DATA).hexdigest()


def contents(seeder: Node, link: Link) -> tuple[Content, Content]:
    """The torrents of an image: the layer's and the manifest's."""
    assert link.pack_torrent is not None
    torrents = seeder.home.torrents
    return Content.of(torrents, link.pack_torrent), Content.of(torrents, link.manifest_torrent)


def address(node: Node) -> tuple[str, int]:
    return parse_peer(node.json("status")["listen"][0])


def boot(reader: Node, link: Link) -> dict[str, int]:
    """Boot an image, read more than the boot does; return from where how many bytes came."""
    report = reader.root.parent / "report.json"
    with Guest(reader, str(link), "--report", report) as guest:
        guest.prompt()
        assert MD5 in guest.sh("md5sum /root/data")
        guest.power_off()
    sources: dict[str, int] = json.loads(report.read_text())["sources"]
    return sources


def test_transmission_alone(nodes: Nodes, cloop: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    link = parse_link(seeder.seed(cloop)["link"])
    # It answers twice a second: a boot of hundreds of reads takes minutes of its time.
    with transmission(hurried(20)) as foreign:
        for content in contents(seeder, link):
            seeding(foreign, content)
        seeder.run("daemon", "stop")
        sources = boot(reader, replace(link, peers=(foreign.address,), mirrors=()))
        host, port = foreign.address
    assert list(sources) == [f"{host}:{port}"]


def test_a_web_seed_alone(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    """A web seed has content alone: manifest and metadata come from a node without content."""
    seeder, keeper, reader = nodes.make(), nodes.make(), nodes.make()
    link = replace(parse_link(seeder.seed(cloop)["link"]), mirrors=())
    keeper.run("info", str(link))
    layer, _ = contents(seeder, link)
    layer.copy(tmp_path)
    seeder.run("daemon", "stop")
    with nginx(tmp_path) as web:
        here = replace(link, peers=(address(keeper),), web_seeds=(web.url,))
        boot(reader, here)
        asked = web.requests()
    assert {request.status for request in asked} == {206}
    assert sum(request.sent for request in asked) > len(DATA)
    assert keeper.torrents()[layer.info_hash.hex()]["traffic"]["payload_sent"] < 1 << 18


def test_a_mirror_alone(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    """All that a web server has: what `p2pcloop mirror` wrote."""
    seeder, reader = nodes.make(), nodes.make()
    seeded = seeder.seed(cloop)["link"]
    with nginx(tmp_path) as web:
        mirrored = seeder.json("mirror", seeded, tmp_path, "--url", web.url)
        seeder.run("daemon", "stop")
        boot(reader, replace(parse_link(mirrored["link"]), peers=()))
        assert {request.status for request in web.requests()} <= {200, 206}


def test_one_of_three_kinds_goes_away(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    """p2pcloop, transmission and a web server together; p2pcloop's node is killed while the guest
    boots, the web server ends after that."""
    seeder, reader = nodes.make(), nodes.make()
    link = parse_link(seeder.seed(cloop)["link"])
    layer, _ = contents(seeder, link)
    layer.copy(tmp_path)
    with ExitStack() as stack, ExitStack() as until_booted:
        web = until_booted.enter_context(nginx(tmp_path))
        foreign = stack.enter_context(transmission(hurried(20)))
        seeding(foreign, layer)
        peers = (*link.peers, foreign.address)
        three = str(replace(link, peers=peers, mirrors=(), web_seeds=(web.url,)))
        report = nodes.directory / "report.json"
        guest = stack.enter_context(Guest(reader, three, "--append", "", "--report", report))
        guest.expect("Linux version", BOUND)  # the disk is not mounted yet
        seeder.remove()
        guest.prompt()
        until_booted.close()
        assert MD5 in guest.sh("md5sum /root/data")
        assert "error" not in guest.sh("dmesg | grep -i error; true")
        guest.power_off()
    sources = json.loads(report.read_text())["sources"]
    assert sources[web.url] > 0
    assert sources[f"{foreign.address[0]}:{foreign.address[1]}"] > 0
    assert sum(sources.values()) > len(DATA)
    assert reader.json("verify", three)["bad"] == 0
