"""Which places a link passes on."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from p2pcloop.formats.link import parse_link
from p2pcloopd.node.link_places import MAX_AGE, MAX_PLACES, LinkPlaces
from p2pcloopd.node.links import _may_reach
from tests.support.ports import free_port
from tests.support.programs import Nodes

from .conftest import publish_version


@pytest.mark.parametrize(
    ("host", "from_elsewhere", "on_this_machine"),
    [
        ("example.org", True, True),
        ("192.168.1.7", True, True),
        ("10.0.0.1", True, True),
        ("fd00::7", True, True),
        ("127.0.0.1", False, True),
        ("127.3.4.5", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("localhost", False, True),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("fe80::1", False, False),
        ("169.254.3.4", False, False),
    ],
)
def test_loopback_is_for_this_machine_and_what_reaches_nobody_for_nobody(
    host: str, from_elsewhere: bool, on_this_machine: bool
) -> None:
    assert _may_reach(host, local=False) is from_elsewhere
    assert _may_reach(host, local=True) is on_this_machine


def test_a_link_names_none_of_the_addresses_that_the_node_had_before(
    nodes: Nodes, content: bytes, tmp_path: Path
) -> None:
    image, changed = tmp_path / "image", tmp_path / "changed"
    image.write_bytes(content[: 1 << 16])
    changed.write_bytes(content[: 1 << 15] + bytes(1 << 15))
    other, node = nodes.start(), nodes.make()
    base = parse_link(other.seed(image)["link"])
    above = "publish", changed, "--name", "above", "--base", str(base), "--raw"
    for host in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
        node.run("config", "set", "listen", f"{host}:0")
        for made, at in ((node.json(*above), ["127.0.0.1"]), (node.seed(changed, "own"), [])):
            link = parse_link(made["link"])
            assert [peer for peer, _ in link.peers] == [host, *at], "the base is there, too"
            assert [urlsplit(each).hostname for each in link.mirrors] == [host, *at]
        node.run("daemon", "stop")


def test_a_file_of_places_that_is_damaged_or_full_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "link-places"
    LinkPlaces(path).note(["192.0.2.1:1"])
    path.write_bytes(b"\xff\n192.0.2.4:1\n" + path.read_bytes())
    places = LinkPlaces(path)
    assert "192.0.2.1:1" in places
    assert "192.0.2.4:1" not in places
    places.note(f"192.0.2.2:{port}" for port in range(MAX_PLACES - 1))
    places.note(["192.0.2.1:1"])
    places.note(["192.0.2.3:1"])
    again = LinkPlaces(path)
    assert "192.0.2.3:1" in again
    assert "192.0.2.1:1" in again
    assert "192.0.2.2:0" not in again
    assert len(path.read_text().splitlines()) == MAX_PLACES
    path.unlink()
    path.mkdir()
    assert "192.0.2.3:1" not in LinkPlaces(path)


def test_an_address_of_long_ago_may_be_another_nodes(tmp_path: Path) -> None:
    path, day = tmp_path / "link-places", MAX_AGE.total_seconds() / MAX_AGE.days
    now = 1_800_000_000.0
    places = LinkPlaces(path, lambda: now)
    places.note(["192.0.2.1:1", "192.0.2.2:1"])
    now += MAX_AGE.total_seconds()
    assert "192.0.2.1:1" in places
    places.note(["192.0.2.2:1"])
    for again in (places, LinkPlaces(path, lambda: now + day)):
        assert "192.0.2.2:1" in again
    now += day
    assert "192.0.2.1:1" not in places
    places.note(["192.0.2.3:1"])
    assert "192.0.2.1" not in path.read_text()
    now -= 2 * day
    assert "192.0.2.3:1" not in places, "the clock was wrong then, or it is now"


def test_a_link_that_is_made_before_the_clock_is_set_costs_no_address(tmp_path: Path) -> None:
    path, now = tmp_path / "link-places", 1_800_000_000.0
    LinkPlaces(path, lambda: now).note(["192.0.2.1:1", "192.0.2.2:1"])
    early = LinkPlaces(path, lambda: 0.0)
    early.note(["192.0.2.2:1", "192.0.2.3:1"])
    assert ["192.0.2.1:1" in early, "192.0.2.2:1" in early] == [False, True]
    again = LinkPlaces(path, lambda: now)
    assert "192.0.2.1:1" in again
    again.note(["192.0.2.4:1"])
    assert "192.0.2.1:1" in LinkPlaces(path, lambda: now)
    assert "192.0.2.3:1" not in path.read_text(), "it is of long ago, as far as is known"


def test_places_that_cannot_be_kept_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A version that is served already must not fail for that."""
    path = tmp_path / "link-places"
    places = LinkPlaces(path)
    path.mkdir()
    places.note(["192.0.2.1:1"])
    assert f"cannot write {path}" in caplog.text
    assert "192.0.2.1:1" in places
    path.rmdir()
    places.note(["192.0.2.1:1"])
    assert "192.0.2.1:1" in LinkPlaces(path)


def test_links_of_public_images_name_the_trackers(nodes: Nodes, content: bytes) -> None:
    tracker = f"http://127.0.0.1:{free_port()}/announce"
    node = nodes.start(f'[discovery]\nannounce_trackers = ["{tracker}"]\n')
    made = publish_version(node, content)
    assert (made["announced"], parse_link(made["link"]).trackers) == (False, ())
    for public in (True, False):  # what is public stays so
        made |= node.call("seed_manifest", manifest=made["manifest"], public=public)
        assert (made["announced"], parse_link(made["link"]).trackers) == (True, (tracker,))
    quiet = nodes.start()
    made = publish_version(quiet, content)
    made = quiet.call("seed_manifest", manifest=made["manifest"], public=True)
    assert (made["announced"], parse_link(made["link"]).trackers) == (False, ())
