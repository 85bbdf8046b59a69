"""The time to fetch an image of 1 MB with a foreign BitTorrent client as its only source.

Each round starts a client that seeds the image and its manifest, and a node with an empty home that
knows no other peer. The clock runs from the start of `p2pcloop export LINK`, p2pcloopd included,
until the image is written. The client has its users' default settings. All of it is on loopback.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from subprocess import TimeoutExpired

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from p2pcloop.formats.link import parse_link
from tests.support.foreign import Client, Content, aria2, libtorrent, seeding, transmission
from tests.support.images import write_cloop_file
from tests.support.programs import Nodes

_CLIENTS: dict[str, Callable[[], AbstractContextManager[Client]]] = {
    "aria2": aria2,
    "transmission": transmission,
    "libtorrent": libtorrent,
}
_RAW = random.Random(3).randbytes(16 << 16)
"""Content of the image: 1 MiB that cannot be compressed."""


def _export_from(client: str) -> Values:
    with Nodes() as nodes, _CLIENTS[client]() as foreign:
        seeder, reader = nodes.make(), nodes.make()
        image = write_cloop_file(nodes.directory / "image.cloop", _RAW)
        link = parse_link(seeder.seed(image)["link"])
        for info_hash in (link.pack_torrent, link.manifest_torrent):
            assert info_hash is not None
            seeding(foreign, Content.of(seeder.home.torrents, info_hash))
        seeder.run("daemon", "stop")
        out = nodes.directory / "out.img"
        only = str(replace(link, peers=(foreign.address,), mirrors=()))
        started = time.monotonic()
        try:
            reader.run("export", only, out)
        except (AssertionError, TimeoutExpired) as err:
            raise BenchError(f"export with {client} as the only source: {err}") from err
        seconds = time.monotonic() - started
        if out.read_bytes() != _RAW:
            raise BenchError(f"export with {client} as the only source wrote wrong data")
        return {"seconds": seconds}


@contextmanager
def _contenders(_bench: Bench) -> Iterator[Contenders]:
    yield {client: partial(_export_from, client) for client in _CLIENTS}


ONLY_SOURCE = Measure(
    "only-source",
    "an image of 1 MB from a foreign BitTorrent client alone, over loopback",
    {"seconds": "s"},
    [
        Row("export from aria2 alone", ("aria2", "seconds"), 5),
        Row("export from transmission alone", ("transmission", "seconds"), 12),
        Row("export from a stock libtorrent alone", ("libtorrent", "seconds"), None),
    ],
    _contenders,
)
