"""Nodes, and what they seed, for tests with programs that others wrote."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from p2pcloop.formats.link import Link, parse_link
from tests.support.foreign import Content
from tests.support.images import write_cloop_file
from tests.support.programs import Node, Nodes

RAW = random.Random(3).randbytes(23 * 65536) + bytes(8 * 65536)


@dataclass(frozen=True)
class Published:
    """An image that a node seeded.

    Attributes:
        raw: what it reads as.
        link: as `seed` printed it.
    """

    raw: bytes
    node: Node
    link: Link

    def link_with(self, **changes: object) -> str:
        """The link with other peers, trackers or web seeds."""
        return str(replace(self.link, **changes))  # type: ignore[arg-type]  # fields by name

    def contents(self, tracker: str = "") -> list[Content]:
        """Its torrents, the layer's first, then the manifest's."""
        hashes = (self.link.pack_torrent, self.link.manifest_torrent)
        return [Content.of(self.node.home.torrents, h, tracker) for h in hashes if h is not None]


def publish(nodes: Nodes, config: str = "") -> Published:
    """Have a new node seed an image of 2 MB."""
    image = write_cloop_file(nodes.directory / "image.cloop", RAW)
    node = nodes.make(config)
    return Published(RAW, node, parse_link(node.seed(image)["link"]))


@pytest.fixture
def published(nodes: Nodes) -> Published:
    return publish(nodes)
