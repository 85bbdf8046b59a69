"""`p2pcloop start` asks for the version under the overlay, whatever the guest was booted by."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from p2pcloop.formats.link import Link
from p2pcloop.formats.manifest import SignedManifest
from p2pcloop.store.guests import OwnGuest
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloopd.commands import boot, start
from tests.support.programs import Node, Nodes
from tests.support.versions import known_version, overlay_on, torrent_of


def ended_guest(home: Home, first: SignedManifest, overlay: Path) -> None:
    """A guest that was booted by the link of a version, over which an overlay lay then."""
    link = str(Link(first.manifest.name, first.id, torrent_of(first)))
    with OwnGuest(home, "g1") as own:
        own.begin(
            ref=link,
            image=str(first.manifest.name),
            version=first.manifest.version,
            overlay=str(overlay),
            memory=1 << 29,
            network="none",
            words=(link, "--overlay", str(overlay)),
            directory=str(overlay.parent),
        )
        own.keep()
        own.end(reason="poweroff", exit_code=0)


def started(node: Node, monkeypatch: pytest.MonkeyPatch) -> int:
    """The version that a start of the guest would boot."""
    booted: list[click.Context] = []
    monkeypatch.setattr(boot.command, "invoke", booted.append)
    monkeypatch.chdir(node.home.root)
    with start.command.make_context("start", ["g1", "--home", str(node.home.root)]) as context:
        start.command.invoke(context)
    [inner] = booted
    node.start()
    version = node.call("resolve", ref=inner.params["ref"], at=inner.params["at"])["version"]
    assert isinstance(version, int)
    return version


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_guest_of_a_link_whose_overlay_was_moved_goes_on(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_removed: bool
) -> None:
    """Also where the version of the link was removed since."""
    node = nodes.make()
    node.home.create()
    first, second = known_version(node.home, 1, 1), known_version(node.home, 2, 2)
    ended_guest(node.home, first, overlay_on(second, tmp_path / "mine.delta"))
    known_version(node.home, 3, 3)
    if is_removed:
        Records(node.home).forget(first.manifest.name, {first.id})
    assert started(node, monkeypatch) == 2


def test_a_guest_whose_version_was_removed_goes_on_with_one_of_the_same_layers(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes.make()
    node.home.create()
    first = known_version(node.home, 1, 1)
    known_version(node.home, 2, 2)
    ended_guest(node.home, first, overlay_on(known_version(node.home, 3, 1), tmp_path / "o.delta"))
    Records(node.home).forget(first.manifest.name, {first.id})
    assert started(node, monkeypatch) == 3
