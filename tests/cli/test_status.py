"""What `status` tells of a node, whose answer is played here."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from p2pcloop.cli.node_facts import look
from p2pcloop.cli.status import _text
from p2pcloop.cli.status_screen import _Screen
from p2pcloop.store.guests import OwnGuest
from p2pcloop.store.home import Home

KEY = "y" * 52
NAME = f"@{KEY}/debian"
LAYER, MANIFEST, OLD, SOURCE = (bytes([number]) * 20 for number in range(4))


def torrent(info_hash: bytes, **fields: Any) -> dict[str, Any]:
    traffic = {"payload_received": 0, "payload_sent": 0, "down_rate": 0, "up_rate": 0, "peers": []}
    return {
        "info_hash": info_hash,
        "name": "image",
        "size": 1000,
        "have_bytes": 1000,
        "provisional_bytes": 0,
        "reason": None,
        "image": NAME,
        "version": 2,
        "kind": "layer",
        "wanted": False,
        "stalled": 0.0,
        "tried": [],
        "traffic": traffic | fields.pop("traffic", {}),
    } | fields


def image(name: str, *torrents: bytes) -> dict[str, Any]:
    return {
        "name": name,
        "version": 2,
        "torrents": list(torrents),
        "sources": [],
        "manifest_torrent": MANIFEST,
        "size": 1000,
        "have_bytes": 1000,
        "provisional_bytes": 0,
        "whole": True,
    }


def node(home: Path, *torrents: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """What p2pcloopd answers."""
    return {
        "pid": 7,
        "home": str(home),
        "warnings": [],
        "uptime": 61.0,
        "listen": ["192.0.2.1:6881"],
        "http": {"listen": [], "received": 0, "sent": 0},
        "mirrors": [],
        "images": [image(NAME, LAYER)],
        "torrents": list(torrents),
        "received": 0,
        "sent": 0,
    } | fields


def drawn(answer: dict[str, Any], width: int = 90, height: int = 24, **shorts: str) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None)
    screen = _Screen(console, {name: short for short, name in shorts.items()})
    screen.node = look(Home.at(answer["home"]), answer)
    console.print(screen.draw())
    return out.getvalue().splitlines()


def told(answer: dict[str, Any]) -> str:
    return _text(look(Home.at(answer["home"]), answer))


@pytest.fixture
def waiting_guest(home: Path) -> Iterator[None]:
    Home.at(home).create()
    with OwnGuest(Home.at(home), "g1") as own:
        own.begin(
            ref="debian", image=NAME, version=2, overlay=None, memory=1, network="none",
            display={"kind": "vnc", "address": "127.0.0.1:5901", "password": "hidden"},
        )  # fmt: skip
        own.folder.waiting_path.write_text("no peer reachable\n")
        yield


WAITS = torrent(LAYER, have_bytes=10, wanted=True, stalled=62.0, tried=["192.0.2.7:1 (no answer)"])


@pytest.mark.usefixtures("waiting_guest")
def test_what_images_and_guests_wait_for_is_told(home: Path) -> None:
    text = told(node(home, WAITS))
    assert "waits 0:01:02 for data; tried: 192.0.2.7:1 (no answer)" in text
    assert re.search(r"  g1 \(@y{8}/debian\): up 0:..:.., waits 0:..:..: no peer reachable", text)
    assert "its metadata" in told(node(home, WAITS | {"size": None}))
    screen = "\n".join(drawn(node(home, WAITS)))
    assert "0:01:02 data; tried: 192.0.2.7:1" in screen
    assert re.search("0:..:.. no peer reachable", screen)
    assert "hidden" not in str(look(Home.at(home), node(home, WAITS)))


def test_torrents_are_told_by_the_names_of_their_images(home: Path) -> None:
    old = torrent(OLD, version=1)
    manifest = torrent(MANIFEST, kind="manifest")
    answer = node(home, torrent(LAYER), manifest, old)
    assert f"{OLD.hex()} ({NAME}, version 1)" in told(answer)
    assert "manifest of" not in told(answer)
    assert any(line.startswith("@yyyyyyyy/debian 1 ") for line in drawn(answer))
    assert any(line.startswith("mine ") for line in drawn(answer, mine=NAME))
    lone = drawn(node(home, torrent(OLD, image=None, version=None, kind=None), images=[]))
    assert any(line.startswith(f"image {OLD.hex()[:8]} ") for line in lone)


def test_a_squashed_image_is_told_with_the_layers_that_it_reads_from(home: Path) -> None:
    peer = {"address": "192.0.2.7:1", "connected": True}
    moving = {"down_rate": 5000, "peers": [peer]}
    source = torrent(SOURCE, have_bytes=10, wanted=True, stalled=4.0, traffic=moving)
    squashed = image(NAME, LAYER) | {"sources": [SOURCE]}
    answer = node(home, torrent(LAYER), source, images=[squashed])
    text = told(answer)
    assert "torrents that are not" not in text
    assert "1 peer" in text
    assert "waits 0:00:04 for data" in text
    rows = [line for line in drawn(answer) if line.startswith("@")]
    assert len(rows) == 1
    assert "5.0 kB/s" in rows[0]


@pytest.mark.usefixtures("waiting_guest")
@pytest.mark.parametrize(("width", "height"), [(90, 24), (60, 10), (30, 5), (200, 60)])
def test_the_screen_fits_the_terminal(home: Path, width: int, height: int) -> None:
    numbers = range(2, 102)
    images = [image(f"@{KEY}/i{number}", bytes([number]) * 20) for number in numbers]
    torrents = [torrent(bytes([number]) * 20) for number in numbers]
    lines = drawn(node(home, *torrents, images=images), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 10)
    assert lines[-1].startswith("… and ")


def test_what_waits_comes_first_and_then_what_moves(home: Path) -> None:
    names = ("a-rests", "moves", "waits", "lacks")
    torrents = [
        torrent(b"a" * 20),
        torrent(b"b" * 20, traffic={"down_rate": 5000}),
        torrent(b"c" * 20, have_bytes=10, wanted=True, stalled=4.0),
        torrent(b"d" * 20, have_bytes=10),
    ]
    images = [
        image(f"@{KEY}/{name}", each["info_hash"]) | {"have_bytes": each["have_bytes"]}
        for name, each in zip(names, torrents, strict=True)
    ]
    lines = drawn(node(home, *torrents, images=images))
    shown = [line.split()[0].partition("/")[2] for line in lines if line.startswith("@")]
    assert shown == ["waits", "moves", "lacks", "a-rests"]
    assert "5.0 kB/s" in next(line for line in lines if "/moves" in line)


def test_a_node_of_an_older_version_tells_less(home: Path) -> None:
    answer = node(home, torrent(LAYER))
    del answer["images"][0]["sources"]
    assert "torrents that are not" not in told(answer)
    del answer["images"]
    for name in ("image", "version", "kind", "wanted", "stalled", "tried"):
        del answer["torrents"][0][name]
    assert f"{LAYER.hex()} (image)" in told(answer)
    assert drawn(answer)
