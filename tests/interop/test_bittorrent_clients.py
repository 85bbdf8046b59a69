"""transmission, aria2 and libtorrent as it comes: each takes from us, and each is enough for us."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from threading import Thread
from typing import Protocol

import pytest

from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.daemon import ensure_daemon
from tests.support.foreign import Client, aria2, hurried, libtorrent, seeding, transmission
from tests.support.programs import Nodes
from tests.support.waiting import BOUND, wait_until

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


def test_a_client_that_chokes_who_wants_nothing_sees_us_interested(
    nodes: Nodes, published: Published
) -> None:
    """aria2 looks again after 10 s where "interested" comes right behind "not interested"."""
    log = nodes.directory / "aria2.log"
    with_log = ("sh", "-c", f'exec "$@" --log={log} --log-level=info', "aria2")
    with aria2(with_log) as foreign:
        for content in published.contents():
            seeding(foreign, content)
        published.node.run("daemon", "stop")
        out = nodes.directory / "out.img"
        nodes.make().run("export", published.link_with(peers=(foreign.address,), mirrors=()), out)
        assert out.read_bytes() == published.raw
    said = log.read_text()
    assert " interested" in said
    # Of each torrent once when its metadata is here, and once when all is.
    assert said.count(" not interested") <= 4


@every_client
def test_takes_from_us(client: Run, nodes: Nodes, published: Published) -> None:
    """From a node that is fetching itself: transmission connects to no address of loopback.

    The node has the other source only once both are connected: libtorrent does not tell a peer of
    a piece that comes during their handshake.
    """
    layer, _ = published.contents()
    home = nodes.make().home
    with client() as foreign, ensure_daemon(home) as control, ensure_daemon(home) as fetcher:
        foreign.add(layer)
        add = partial(control.call, "add", torrent=layer.info_hash, trackers=[], web_seeds=[])
        add(peers=[list(foreign.address)])
        fetch = partial(fetcher.call, "fetch", torrent=layer.info_hash)
        fetching = Thread(target=fetch, daemon=True)
        fetching.start()
        wait_until(partial(_is_connected, control), "the client is not connected")
        add(peers=[list(peer) for peer in published.link.peers])
        fetching.join(BOUND)
        assert not fetching.is_alive()
        wait_until(partial(foreign.complete, layer.info_hash), "the client is not complete")
        # libtorrent says so before its threads have written all of it.
        wait_until(lambda: layer.read(foreign.directory) == layer.read(), "its files are others")


def _is_connected(control: ControlClient) -> bool:
    [torrent] = control.call("status")["torrents"]
    return bool(torrent["size"]) and any(p["connected"] for p in torrent["traffic"]["peers"])
