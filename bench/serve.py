"""The cost of comparing pieces with their hashes before a node serves them.

When a piece leaves for the first time it is read, compared and sent. Later it is read and sent. The
difference is the cost of the comparison.
"""

from __future__ import annotations

import http.client
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libtorrent as lt

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, daemon_pid, fresh_node, processor_seconds, run_json
from p2pcloop.formats.link import parse_link, parse_peer

_SPAN = 16 << 10
_REQUESTS = 2000
_LIMIT = 120


class _Seeder:
    """A node that seeds the cloop, started anew for each round."""

    def __init__(self, bench: Bench, home: Path) -> None:
        argv: list[Argument] = [bench.p2pcloop, "seed", bench.cloop, "--name", "bench", "--json"]
        told = run_json([*argv, "--home", home])
        status = run_json([bench.p2pcloop, "status", "--json", "--home", home])
        self._pid = daemon_pid(home)
        self._torrent = (home / "torrents" / told["torrent"] / "torrent").read_bytes()
        self._peer = parse_link(told["link"]).peers[0]
        self._http = parse_peer(status["http"]["listen"][0])
        self._size = bench.cloop.stat().st_size

    def by_bittorrent(self) -> Values:
        """A stock client fetches all of it."""
        folder = tempfile.mkdtemp(prefix="p2pcloop-serve-")
        settings: Any = {
            "listen_interfaces": "127.0.0.1:0",
            "enable_dht": False,
            "enable_lsd": False,
        }
        settings |= {"enable_upnp": False, "enable_natpmp": False}
        session = lt.session(settings)
        try:
            params = lt.add_torrent_params()
            params.ti = lt.torrent_info(self._torrent)
            params.save_path = folder
            busy, start = processor_seconds(self._pid), time.monotonic()
            handle = session.add_torrent(params)
            handle.connect_peer(self._peer)
            while not handle.status().is_seeding:
                if time.monotonic() - start > _LIMIT:
                    raise BenchError("the client did not get all of it in time")
                time.sleep(0.02)
            gigabytes = self._size / 1e9
            return {
                "processor": (processor_seconds(self._pid) - busy) / gigabytes,
                "rate": self._size / 1e6 / (time.monotonic() - start),
            }
        finally:
            del session
            shutil.rmtree(folder)

    def by_http(self) -> Values:
        """Ranges of 16 KiB at random places, the same each time."""
        [name] = lt.torrent_info(self._torrent).name().split("/")
        places = random.Random(1)
        connection = http.client.HTTPConnection(*self._http, timeout=10)
        busy, start = processor_seconds(self._pid), time.monotonic()
        for _ in range(_REQUESTS):
            at = places.randrange(self._size - _SPAN)
            connection.request(
                "GET", f"/data/{name}/pack", headers={"Range": f"bytes={at}-{at + _SPAN - 1}"}
            )
            if len(connection.getresponse().read()) != _SPAN:
                raise BenchError("the node did not answer a range")
        connection.close()
        return {
            "processor": (processor_seconds(self._pid) - busy) / _REQUESTS * 1e6,
            "latency": (time.monotonic() - start) / _REQUESTS * 1e6,
        }


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    def serve() -> Values:
        with fresh_node(bench, "serving") as home:
            seeder = _Seeder(bench, home)
            took = {
                "first by BitTorrent": seeder.by_bittorrent(),
                "again by BitTorrent": seeder.by_bittorrent(),
                "first over HTTP": seeder.by_http(),
                "again over HTTP": seeder.by_http(),
            }
        return {
            f"{k}, {what}": value for k, values in took.items() for what, value in values.items()
        }

    yield {"p2pcloop": serve}


_UNITS = {
    ("by BitTorrent", "processor"): "s/GB",
    ("by BitTorrent", "rate"): "MB/s",
    ("over HTTP", "processor"): "µs",
    ("over HTTP", "latency"): "µs",
}


def _row(title: str, way: str, what: str) -> Row:
    ours, base = (("p2pcloop", f"{when} {way}, {what}") for when in ("first", "again"))
    return Row(title, ours, None, base)


SERVE = Measure(
    "serve",
    "pieces that leave a seeder for the first time, compared with their hashes, against again",
    {
        f"{when} {way}, {what}": unit
        for when in ("first", "again")
        for (way, what), unit in _UNITS.items()
    },
    [
        _row("processor of p2pcloopd, BitTorrent", "by BitTorrent", "processor"),
        _row("rate, BitTorrent", "by BitTorrent", "rate"),
        _row("processor of p2pcloopd, 16 KiB over HTTP", "over HTTP", "processor"),
        _row("time of 16 KiB over HTTP", "over HTTP", "latency"),
    ],
    _contenders,
)
