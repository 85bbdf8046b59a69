"""Bytes that cross before the first block of a large image can be read, by its link alone.

A 2 GB image of 28,000 chunks is seeded by one node and read by another with an empty home, both in
a network namespace of their own: its loopback counts every packet, both ways, of 1500 bytes at
most. Once with the seeder's HTTP endpoint in the link, once with its BitTorrent port alone.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, node, run, run_json
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.open_stored import Source
from p2pcloop.client.refs import resolve_ref
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.formats.link import parse_link
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.store.home import Home
from p2pcloop.units import BLOCK_SIZE

CLOOP_BLOCK = 1 << 16
BLOCKS = 2_000_000_000 // CLOOP_BLOCK
CHUNKS = 28_000
NOISE = 24 << 10
"""Bytes of each block that do not compress: the pack has 690 MB."""

LIMIT = 65_536
_ISOLATED = ("unshare", "--map-root-user", "--net", "sh", "-c")
_LOOPBACK = 'ip link set lo mtu 1500 up && exec "$@"'


def write_image(start: bytes, target: Path) -> None:
    """Write a cloop V2.0 that begins as a real file system does; the rest is noise and holes."""
    rng = random.Random(3)
    full = {0, *rng.sample(range(1, BLOCKS), CHUNKS - 1)}
    hole = zlib.compress(bytes(CLOOP_BLOCK), 1)

    def stored(number: int) -> bytes:
        if number not in full:
            return hole
        noise = os.urandom(NOISE) + bytes(CLOOP_BLOCK - NOISE)
        return zlib.compress(start if not number else noise, 1)

    with target.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        preamble = b"#!/bin/sh\n#V2.0 Format\n".ljust(128, b"\0")
        at = len(preamble) + 8 + 8 * (BLOCKS + 1)
        file.seek(at)
        offsets = [at]
        for first in range(0, BLOCKS, 256):
            for data in pool.map(stored, range(first, min(first + 256, BLOCKS))):
                file.write(data)
                offsets.append(offsets[-1] + len(data))
        file.seek(0)
        file.write(preamble + struct.pack(">II", CLOOP_BLOCK, BLOCKS))
        file.write(struct.pack(f">{BLOCKS + 1}Q", *offsets))


def crossed() -> int:
    """Bytes of all packets that this namespace's loopback has carried."""
    for line in Path("/proc/net/dev").read_text().splitlines():  # sysfs would show the host's
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise BenchError("there is no loopback")


def read_first_block(seeder: Path, reader: Path, link: str) -> dict[str, float]:
    """Read block 0 from a link in an empty home; run where nothing else uses the loopback."""
    ensure_daemon(Home.at(seeder)).close()
    home = Home.at(reader)
    with ensure_daemon(home) as client:
        before, started = crossed(), time.monotonic()
        ref = resolve_ref(link, home)
        assert isinstance(ref, StoredRef)
        source = Source(ref, home)
        device = ImageDevice(source.open(), None)
        block = bytearray(BLOCK_SIZE)
        while True:
            try:
                device.read_into(0, [memoryview(block)])
                break
            except Missing as missing:
                source.supply(missing)
        found = {"bytes": crossed() - before, "seconds": time.monotonic() - started}
        status = client.call("status")
        device.close()
    assert any(block)
    return found | {"told": status["received"] + status["sent"]}


def _first_block(bench: Bench, seeder: Path, reader: Path, link: str) -> Values:
    try:
        with node(bench, reader):
            argv: list[Argument] = [*_ISOLATED, _LOOPBACK, "sh", sys.executable, "-m"]
            argv += ["bench.first_block", seeder, reader, link]
            told = run_json(argv)
            return {name: float(value) for name, value in told.items()}
    finally:
        for home in (seeder, reader):
            run([bench.p2pcloop, "daemon", "stop", "--home", home])
        shutil.rmtree(reader)


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    cloop, seeder = bench.work / "large.cloop", bench.work / "seeder"
    with bench.image.open("rb") as image:
        write_image(image.read(CLOOP_BLOCK), cloop)
    with node(bench, seeder):
        argv: list[Argument] = [bench.p2pcloop, "seed", cloop, "--name", "large", "--json"]
        link = parse_link(run_json([*argv, "--home", seeder])["link"])
    if not link.mirrors:
        raise BenchError("the seeder's link names no HTTP endpoint")
    readers = iter(range(1000))

    def measure(wanted: str) -> Values:
        return _first_block(bench, seeder, bench.work / f"r{next(readers)}", wanted)

    yield {
        "HTTP": lambda: measure(str(link)),
        "peers alone": lambda: measure(str(replace(link, mirrors=()))),
    }


FIRST_BLOCK = Measure(
    "first-block",
    "bytes that cross until block 0 of a 2 GB image of 28,000 chunks is read, from a link",
    {"bytes": "B", "seconds": "s", "told": "B"},
    [
        Row("bytes before the first block", ("HTTP", "bytes"), LIMIT),
        Row("the same / by peers alone", ("HTTP", "bytes"), 1.0, ("peers alone", "bytes")),
    ],
    _contenders,
)

if __name__ == "__main__":
    print(json.dumps(read_first_block(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])))
