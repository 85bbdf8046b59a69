"""The wait of a read for a chunk that is not here, over loopback from one peer.

Reads of 4 KiB through NBD, one after the other, each in another chunk and far enough from the last
that no piece is asked for twice.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.nbd_reader import NbdReader
from bench.processes import Argument, fresh_node, seeding, server

_APART = 16 * 65536  # bytes of image between two reads
_BLOCK = 4096


def scattered_data(image: Path) -> dict[int, bytes]:
    """Blocks of the image that hold data, by offset, far apart, in random but fixed order."""
    found: list[tuple[int, bytes]] = []
    with image.open("rb") as file:
        for offset in range(_APART, image.stat().st_size - _APART, _APART):
            file.seek(offset)
            block = file.read(_BLOCK)
            if block.strip(b"\0"):
                found.append((offset, block))
    random.Random(1).shuffle(found)
    return dict(found)


def wait_times(reader: NbdReader, blocks: dict[int, bytes]) -> list[float]:
    """Milliseconds for each block; the content is compared."""
    times = []
    for offset, block in blocks.items():
        start = time.perf_counter()
        data = reader.read(offset)
        times.append((time.perf_counter() - start) * 1000)
        if data != block:
            raise BenchError(f"wrong data at {offset}")
    return times


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    blocks = scattered_data(bench.image)
    if len(blocks) < 100:
        raise BenchError(f"only {len(blocks)} places of the image hold data; 100 are needed")

    with seeding(bench) as link:

        def fetches() -> Values:
            path = bench.work / "nbd.sock"
            argv: list[Argument] = [bench.p2pcloop, "block", link, "--nbd", f"unix:{path}"]
            with (
                fresh_node(bench, "reader") as home,
                server([*argv, "--home", home], path, bench.work / "block.log"),
            ):
                reader = NbdReader(path)
                reader.read(0)  # everything needed once: manifest, maps, connection
                times = wait_times(reader, blocks)
                reader.close()
            cuts = statistics.quantiles(times, n=100, method="inclusive")
            return {"p50": cuts[49], "p99": cuts[98], "max": max(times), "reads": len(times)}

        yield {"p2pcloop": fetches}


FETCH = Measure(
    "fetch",
    "demand fetch of one missing chunk over loopback",
    {"p50": "ms", "p99": "ms", "max": "ms", "reads": ""},
    [
        Row("demand fetch, p50", ("p2pcloop", "p50"), 3),
        Row("demand fetch, p99", ("p2pcloop", "p99"), 15),
    ],
    _contenders,
)
