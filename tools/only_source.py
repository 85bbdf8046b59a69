"""How soon an image of 1 MB is here whose only source is a foreign BitTorrent client.

    .venv/bin/python -m tools.only_source aria2 --runs 20 --bar 5
    .venv/bin/python -m tools.only_source transmission --runs 20 --bar 12

Each run: a client of its own that seeds the image and its manifest, a node with an empty home that
knows nobody else, and `p2pcloop export` by the link: from its start until the image is written and
compared. The client runs as its users run it. All of it on loopback.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from subprocess import TimeoutExpired

from p2pcloop.formats.link import parse_link
from tests.support.foreign import Client, Content, aria2, libtorrent, seeding, transmission
from tests.support.images import write_cloop_file
from tests.support.programs import Nodes

CLIENTS: dict[str, Callable[[], AbstractContextManager[Client]]] = {
    "aria2": aria2,
    "transmission": transmission,
    "libtorrent": libtorrent,
}
RAW = random.Random(3).randbytes(16 << 16)
"""Content of the image: 1 MiB that cannot be compressed."""


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    about = "Measure how soon an image of 1 MB is here whose only source is a foreign client."
    parser = argparse.ArgumentParser(prog="tools.only_source", description=about)
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--bar", type=float, help="seconds that no run may exceed")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Print each run and the distribution; 0 where every run reached the bar."""
    options = parse(args)
    seconds: list[float] = []
    for number in range(options.runs):
        taken = measure(options.client)
        seconds.append(taken)
        print(f"{options.client}: run {number + 1} of {options.runs}: {taken:.2f} s", flush=True)
    ordered = sorted(seconds)
    print(
        f"{options.client}: least {ordered[0]:.2f} s, median {statistics.median(ordered):.2f} s,"
        f" most {ordered[-1]:.2f} s"
    )
    if options.bar is None:
        return 0
    reached = sum(each <= options.bar for each in seconds)
    print(f"at most {options.bar:g} s: {reached} of {len(seconds)}")
    return 0 if reached == len(seconds) else 1


def measure(client: str) -> float:
    """Seconds of one run; infinite where it failed or took longer than 40 s."""
    with Nodes() as nodes, CLIENTS[client]() as foreign:
        seeder, reader = nodes.make(), nodes.make()
        image = write_cloop_file(nodes.directory / "image.cloop", RAW)
        link = parse_link(seeder.seed(image)["link"])
        for info_hash in (link.pack_torrent, link.manifest_torrent):
            assert info_hash is not None
            seeding(foreign, Content.of(seeder.home.torrents, info_hash))
        seeder.run("daemon", "stop")
        out = nodes.directory / "out.img"
        only = str(replace(link, peers=(foreign.address,), mirrors=()))
        started = time.monotonic()
        with suppress(AssertionError, TimeoutExpired):
            reader.run("export", only, out)
            taken = time.monotonic() - started
            assert out.read_bytes() == RAW
            return taken
        return float("inf")


if __name__ == "__main__":
    sys.exit(main())
