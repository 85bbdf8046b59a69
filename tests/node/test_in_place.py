"""A node whose user's files are moved, swapped, or rot: what status, HTTP and readers are told."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from p2pcloop.cli.node_facts import look
from p2pcloop.cli.status import _text
from p2pcloop.errors import CorruptError
from p2pcloop.formats.link import parse_peer
from p2pcloop.formats.mirror import layer_torrent_name
from tests.support.engines import flip
from tests.support.programs import Node, Nodes
from tests.support.waiting import wait_until

from .test_mirrors import LAYER_ID, Published, ask, publish, read, state

PACK = random.Random(1).randbytes(300_000)
PATH = f"data/{layer_torrent_name(LAYER_ID)}/pack"


@pytest.fixture
def published(nodes: Nodes, tmp_path: Path) -> Published:
    return publish(nodes.start(), PACK, tmp_path.resolve() / "m")


@pytest.fixture
def reader(nodes: Nodes, published: Published) -> Node:
    """A node that has the image from a mirror's directory, where it lies."""
    reader = nodes.start()
    reader.call("resolve", ref=f"{published.directory}/{published.link.name}")
    assert state(reader, published)["have_bytes"] == len(published.content)
    return reader


def trouble(node: Node, published: Published) -> str | None:
    told: str | None = state(node, published)["trouble"]
    return told


def test_a_mirror_directory_that_is_written_to_or_moved(reader: Node, published: Published) -> None:
    pack = published.directory / PATH
    away = pack.with_name("away")
    assert ask(reader, f"/{PATH}") == (200, PACK)
    pack.rename(away)
    wait_until(lambda: trouble(reader, published) == "gone")
    assert ask(reader, f"/{PATH}")[0] == 404
    assert f"{pack}, which is seeded from there, is gone" in _text(
        look(reader.home, reader.call("status"))
    )
    with pytest.raises(CorruptError, match="is gone"):
        read(reader, published, 5000, 100)
    pack.write_bytes(b"s" * len(PACK))
    wait_until(lambda: trouble(reader, published) == "changed")
    assert ask(reader, f"/{PATH}")[0] == 404
    assert f"{pack} changed since it was seeded" in _text(look(reader.home, reader.call("status")))
    assert "0 % of" in _text(look(reader.home, reader.call("status")))
    away.replace(pack)
    assert read(reader, published, 5000, 100) == published.content[5000:5100], "looked at again"
    assert trouble(reader, published) is None
    assert ask(reader, f"/{PATH}") == (200, PACK)


def test_what_rots_in_the_store_is_never_sent_and_comes_again(
    reader: Node, published: Published
) -> None:
    node = published.node
    pack = node.home.torrents / published.layer.torrent.hex() / "data" / PATH.removeprefix("data/")
    assert ask(node, f"/{PATH}") == (200, PACK)
    flip(pack, 150_000)
    assert ask(node, f"/{PATH}", headers={"Range": "bytes=150000-150010"})[0] == 404
    wait_until(lambda: trouble(node, published) == "damaged")
    assert "wrong on this disk, and are asked of others: 1" in _text(
        look(node.home, node.call("status"))
    )
    assert ask(node, f"/{PATH}", headers={"Range": "bytes=0-9"}) == (206, PACK[:10])
    peers = [list(parse_peer(each)) for each in reader.call("status")["listen"]]
    node.call("add", torrent=published.layer.torrent, peers=peers, trackers=[], web_seeds=[])
    wait_until(lambda: ask(node, f"/{PATH}") == (200, PACK))
    assert trouble(node, published) is None
    assert pack.read_bytes() == PACK
