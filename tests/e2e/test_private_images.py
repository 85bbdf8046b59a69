"""A private image: who has its key boots it, who has not can seed it, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.formats.link import parse_link
from tests.support.programs import Guest, Node, Nodes

from .conftest import DATA

pytestmark = pytest.mark.e2e

WRONG = "a" * 51 + "q"
"""A key of the right form."""


def test_with_the_key_it_boots_and_without_it_is_only_seeded(
    nodes: Nodes, image: Path, tmp_path: Path
) -> None:
    publisher, carrier, reader = nodes.make(), nodes.make(), nodes.make()
    whole = publisher.json("publish", image, "--name", "secret", "--private")["link"]
    link = parse_link(whole)
    assert link.secret is not None
    public, _, key = whole.partition("#key=")
    overlay, out = tmp_path / "mine.delta", tmp_path / "out.img"
    _carries_what_it_cannot_read(carrier, whole, overlay, out)

    # The carrier is enough for a user who has the key; it learns nothing by that.
    publisher.run("daemon", "stop")
    [address] = carrier.json("status")["listen"]
    peers = f"{public}&x.pe={address}#key={key}"
    with Guest(reader, peers, "--overlay", overlay) as guest:
        guest.prompt()
        guest.sh("echo kept > /root/mine && sync")
        guest.power_off()
    name = str(link.name)
    reader.run("export", name, out)
    assert out.read_bytes() == image.read_bytes()
    assert reader.json("verify", overlay)["changed"] > 0
    assert not [path for path in carrier.home.root.rglob("*") if key in _text(path)]


def _carries_what_it_cannot_read(carrier: Node, whole: str, overlay: Path, out: Path) -> None:
    """A user without the key fetches all of an image, and none of it is in what they have."""
    public, _, key = whole.partition("#key=")
    assert carrier.json("fetch", public)["readable"] is False
    assert "sealed" in carrier.run("fetch", public).out
    assert carrier.json("info", public)["private"] is True
    stored = b"".join(path.read_bytes() for path in carrier.home.torrents.rglob("pack"))
    assert len(stored) > len(DATA)
    for at in range(0, len(DATA), 65536):
        assert DATA[at : at + 64] not in stored
    refused: list[tuple[list[str | Path], int, str]] = [
        (["boot", public, "--overlay", overlay], 2, "its key is not here"),
        (["export", public, out], 2, "its key is not here"),
        (["boot", f"{public}#key={WRONG}", "--overlay", overlay], 5, "wrong key"),
        (["boot", whole[:-1], "--overlay", overlay], 2, "key"),
    ]
    for words, code, told in refused:
        done = carrier.run(*words, code=code)
        assert told in done.err
        assert len([line for line in done.err.splitlines() if "hint:" not in line]) == 1
        assert done.out == ""
    assert not overlay.exists()
    assert not out.exists()
    assert not [path for path in carrier.home.root.rglob("*") if key in _text(path)]


def test_a_private_name_stays_under_its_key(nodes: Nodes, image: Path, tmp_path: Path) -> None:
    """A name has one link: what lies under the key before could not be read again."""
    publisher = nodes.make()
    whole = publisher.json("publish", image, "--name", "mine", "--private")["link"]
    other = publisher.json("publish", image, "--name", "other", "--private")["link"]
    changed = tmp_path / "changed.img"
    changed.write_bytes(image.read_bytes()[:-4096] + bytes(4096))
    for words, told in (
        (["seed", changed, "--name", "mine"], "for all readers"),
        (["publish", changed, "--name", "mine", "--base", other], "under another key"),
    ):
        assert told in publisher.run(*words, code=2).err
    again = publisher.json("info", str(parse_link(whole).name))
    assert again["version"] == 1
    assert parse_link(again["link"]).secret == parse_link(whole).secret


def _text(path: Path) -> str:
    return path.read_bytes().decode("latin-1") if path.is_file() else ""
