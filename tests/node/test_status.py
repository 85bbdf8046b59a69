"""The operations `status` and `watch`, and the screen that shows them."""

from __future__ import annotations

import signal
import termios
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.manifest import LayerRef, open_manifest, sign_manifest
from p2pcloop.store.records import Records
from p2pcloop.units import format_size
from p2pcloopd.guest import report
from p2pcloopd.web.views import NodeView
from tests.support.programs import Node, Nodes, OnTerminal
from tests.support.waiting import BOUND

from .conftest import KEY, publish_version


@pytest.fixture
def node(nodes: Nodes) -> Node:
    return nodes.start()


class _EnoughError(Exception):
    pass


def test_torrents_are_told_with_their_images(node: Node, content: bytes) -> None:
    old, new = (publish_version(node, content[cut:], 1 + cut) for cut in range(2))
    status = node.call("status")
    parts = {each["info_hash"]: (each["version"], each["kind"]) for each in status["torrents"]}
    assert parts == {
        old["torrent"]: (1, "layer"),
        old["manifest_torrent"]: (1, "manifest"),
        new["torrent"]: (2, "layer"),
        new["manifest_torrent"]: (2, "manifest"),
    }
    assert {each["image"] for each in status["torrents"]} == {new["name"]}
    [image] = status["images"]
    assert (image["name"], image["version"]) == (new["name"], 2)
    assert image["torrents"] == [new["torrent"]]
    assert image["size"] == image["have_bytes"] == 4096 + len(content) - 1
    assert image["whole"]


def test_source_layers_are_told_with_the_image_that_reads_from_them(
    node: Node, content: bytes
) -> None:
    below = publish_version(node, content[1:])
    first = publish_version(node, content, 2)
    newest = open_manifest(first["manifest"]).manifest
    source = replace(open_manifest(below["manifest"]).manifest.layers[0], layer_id=b"s" * 32)
    squashed = sign_manifest(replace(newest, version=3, sources=(source,)), KEY)
    node.call("seed_manifest", manifest=squashed)
    [image] = node.call("status")["images"]
    assert (image["torrents"], image["sources"]) == ([first["torrent"]], [below["torrent"]])
    shown = node.run("status").out.partition("not of the newest version")[2]
    assert "version 1)" in shown, "its manifest"
    assert "version 3)" not in shown
    assert below["torrent"].hex() not in shown
    with node.connect() as client:
        ref = StoredRef(open_manifest(squashed), image["name"], first["link"], client)
        facts = report.image_facts(ref, node.call("status"), node.home)
    assert facts["image_stored"] == 2 * len(content) - 1
    view = NodeView(node.home)
    view.take("status", node.call("status"))
    moved = next(t for t in view._torrents.values() if t["info_hash"] == below["torrent"])
    moved["traffic"] |= {"down_rate": 7}
    view.take("watch", node.call("status") | {"images": [], "torrents": [moved]})
    assert view.facts()["images"][image["name"]]["down"] == 7


def test_an_image_is_not_whole_before_the_metadata_of_all_its_layers_is_here(
    node: Node, content: bytes
) -> None:
    first = publish_version(node, content)
    manifest = open_manifest(first["manifest"]).manifest
    absent = LayerRef(b"m" * 32, b"t" * 20, 4096, 512, 3 * len(content), 1 << 18)
    newer = replace(manifest, version=2, layers=(*manifest.layers, absent))
    signed = open_manifest(sign_manifest(newer, KEY))
    node.run("daemon", "stop")
    Records(node.home).keep(signed, replace(parse_link(first["link"]), manifest_id=signed.id))
    node.run("daemon", "start")
    [image] = node.call("status")["images"]
    assert image["have_bytes"] == 4096 + len(content)
    assert (image["size"], image["whole"]) == (2 * 4096 + 4 * len(content), False)
    assert 'p2pcloop_images{state="partial"} 1' in node.run("metrics").out
    assert f"25 % of {format_size(image['size'])} here" in node.run("status").out
    view = NodeView(node.home)
    view.take("status", node.call("status"))
    assert view.facts()["images"][image["name"]]["whole"] is False


def test_a_client_that_watches_gets_what_changed(node: Node, content: bytes) -> None:
    first = publish_version(node, content)
    events: list[dict[str, Any]] = []

    def take(_event: str, fields: dict[str, Any]) -> None:
        events.append(fields)
        if len(events) == 2:
            publish_version(node, content[1:], 2)
        if events[-1]["images"] and len(events) > 1:
            raise _EnoughError

    with node.connect() as client, pytest.raises(_EnoughError):
        client.call("watch", take, changes=True)
    assert {each["info_hash"] for each in events[0]["torrents"]} > {first["torrent"]}
    assert [len(each["images"]) for each in events[:2]] == [1, 0]
    assert events[1]["torrents"] == []
    assert [each["version"] for each in events[-1]["images"]] == [2]
    assert first["torrent"] not in [each["info_hash"] for each in events[-1]["torrents"]]
    assert not any(each["gone"] or each["gone_images"] for each in events)


def test_the_screen_follows_the_terminal_and_leaves_it_as_it_was(
    node: Node, content: bytes
) -> None:
    name = publish_version(node, content)["name"]
    with OnTerminal(node, "status", "--watch", controlling=True) as console:
        console.expect(rf"{name[:9]}/image\S*\s+\S*100 %", BOUND)
        termios.tcsetwinsize(console._master, (20, 43))
        console.expect(r"p2pcloopd on [^\r\n]{29}…", BOUND)
        console.send(b"\x03")
        assert console.wait(BOUND) == 128 + signal.SIGINT
        shown = console.printed
    assert "\x1b[?1049h" in shown
    assert shown.rstrip().endswith("\x1b[?25h\x1b[?1049l")
    assert "Traceback" not in shown


def test_that_only_this_machine_reaches_the_node_is_remarked_once(
    node: Node, content: bytes, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(content[: 1 << 16])
    remark = "only this machine reaches the node"
    assert remark in node.run("seed", image, "--name", "one", "--raw").err
    assert remark not in node.run("seed", image, "--name", "two", "--raw").err
    assert remark in node.run("status").out
    assert node.run("fetch", "one", "--quiet").err == ""
