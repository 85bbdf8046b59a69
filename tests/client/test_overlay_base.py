"""Which version an overlay lies on."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.client.overlay_base import open_overlay_on, version_of_guest
from p2pcloop.errors import MismatchError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.guest_record import GuestRecord
from p2pcloop.store.home import Home
from tests.support.versions import known_version, overlay_on


@pytest.fixture
def node(tmp_path: Path) -> Home:
    node = Home.at(tmp_path / "home")
    node.create()
    return node


def guest(image: str, version: int | None, overlay: Path | None) -> GuestRecord:
    kept = None if overlay is None else str(overlay)
    return GuestRecord("g1", "debian", image, version, kept, 1 << 29, "none", 1, 1, 0, kept=True)


def test_a_guest_goes_on_with_the_version_that_it_ran(node: Home, tmp_path: Path) -> None:
    """Also once its own changes were published as the next version of that image."""
    first = known_version(node, 1, 1)
    name = str(first.manifest.name)
    overlay = overlay_on(first, tmp_path / "mine.delta")
    known_version(node, 2, 2)
    assert version_of_guest(guest(name, 1, overlay), node) == 1
    # Under another name, with the same layers; over a file; and without changes.
    assert version_of_guest(guest("@other/debian", 7, overlay), node) == 7
    assert version_of_guest(guest("/srv/debian.cloop", None, overlay), node) is None
    assert version_of_guest(guest(name, 1, None), node) is None


def test_a_guest_whose_overlay_was_moved_goes_on_where_that_lies(
    node: Home, tmp_path: Path
) -> None:
    name = str(known_version(node, 1, 1).manifest.name)
    overlay = overlay_on(known_version(node, 2, 2), tmp_path / "mine.delta")
    assert version_of_guest(guest(name, 1, overlay), node) == 2
    known_version(node, 3, 3)
    assert version_of_guest(guest(name, 1, overlay), node) == 2
    # One with the same layers as a newer version may go on with either.
    known_version(node, 4, 2)
    assert version_of_guest(guest(name, 1, overlay), node) == 4
    assert version_of_guest(guest(name, 2, overlay), node) == 2


def test_an_overlay_of_another_version_is_refused_with_its_number(
    node: Home, tmp_path: Path
) -> None:
    first = known_version(node, 1, 1)
    overlay = overlay_on(first, tmp_path / "mine.delta")
    newest = known_version(node, 2, 2).manifest
    with pytest.raises(MismatchError, match=f"made on another image: {newest.name}, version 1") as (
        refused
    ):
        open_overlay_on(overlay, node, image_id=newest.image_id)
    hint = str(refused.value.hint)
    assert f"{newest.name} --at 1" in hint
    assert "start anew" in hint
    # A reader makes no overlay; and `publish` has an option of its own.
    for given, said in (None, f"use it with that one: {newest.name} --at 1"), ("leave", "leave"):
        with pytest.raises(MismatchError) as refused:
            open_overlay_on(overlay, node, image_id=newest.image_id, read_only=True, hint=given)
        assert refused.value.hint == said
    open_overlay_on(overlay, node, image_id=first.manifest.image_id).close()
    # Its mode comes first; and a file has no version.
    with pytest.raises(MismatchError, match="blocks"):
        open_overlay_on(overlay, node, image_id=newest.image_id, mode="files")
    other = tmp_path / "other.delta"
    Overlay.create(other, image_id=bytes(32), image_size=4096).close()
    with pytest.raises(MismatchError, match="made on another image: image id"):
        open_overlay_on(other, node, image_id=newest.image_id)
