"""transmission, aria2 and libtorrent as it comes: each takes from us, and each is enough for us."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import pytest

from tests.support.foreign import (
    Client,
    aria2,
    hurried,
    libtorrent,
    seeding,
    transmission,
    wait_until,
)
from tests.support.programs import Nodes

from .conftest import Published

pytestmark = pytest.mark.interop


class Run(Protocol):
    """Runs a client."""

    def __call__(self) -> AbstractContextManager[Client]: ...


every_client = pytest.mark.parametrize(
    "client",
    [
        # transmission unchokes every 10 s: 20 times as fast here, which costs no test's honesty.
        pytest.param(partial(transmission, hurried(20)), id="transmission"),
        pytest.param(aria2, id="aria2"),
        pytest.param(libtorrent, id="libtorrent"),
    ],
)


@every_client
def test_the_only_source(client: Run, nodes: Nodes, published: Published) -> None:
    with client() as foreign:
        for content in published.contents():
            seeding(foreign, content)
        published.node.run("daemon", "stop")
        reader = nodes.make()
        out = nodes.directory / "out.img"
        link = published.link_with(peers=(foreign.address,), mirrors=())
        reader.run("export", link, out)
        assert out.read_bytes() == published.raw
        assert reader.json("verify", link)["bad"] == 0


@every_client
def test_takes_from_us(client: Run, nodes: Nodes, published: Published) -> None:
    """From a node that is fetching itself: transmission connects to no address of loopback."""
    layer, _ = published.contents()
    with client() as foreign:
        foreign.add(layer)
        peers = (foreign.address, *published.link.peers)
        nodes.make().run("fetch", published.link_with(peers=peers, mirrors=()))
        wait_until(partial(foreign.complete, layer.info_hash), "the client is not complete")
        assert layer.read(foreign.directory) == layer.read()
