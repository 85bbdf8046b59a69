"""From a cloop file to a node that serves it, against unpacking and hashing it once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, Contenders, Measure, Row, Values
from bench.processes import node, run


def _busy_seconds() -> float:
    """Processor time that all programs of the machine have used since it started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system = (int(field) for field in fields[1:4])
    return (user + nice + system) / 100


def _seed(bench: Bench) -> Values:
    home = bench.work / "seeder"
    try:
        with node(bench, home):
            busy, start = _busy_seconds(), time.monotonic()
            run([bench.p2pcloop, "seed", bench.cloop, "--name", "bench", "--home", home])
            seconds = time.monotonic() - start
            return {"seconds": seconds, "cores": (_busy_seconds() - busy) / seconds}
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _unpack_and_hash(bench: Bench) -> Values:
    start = time.monotonic()
    run(["extract_compressed_fs", bench.cloop, "/dev/null"])
    run(["sha256sum", bench.image])
    return {"seconds": time.monotonic() - start}


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    yield {"p2pcloop": lambda: _seed(bench), "extract + sha256sum": lambda: _unpack_and_hash(bench)}


SEED = Measure(
    "seed",
    "p2pcloop seed until it serves, against extract_compressed_fs plus sha256sum",
    [
        Row(
            "seed / extract + sha256sum",
            "s",
            ("p2pcloop", "seconds"),
            1.2,
            ("extract + sha256sum", "seconds"),
        ),
        Row("processors busy while seeding", "", ("p2pcloop", "cores"), 1.2, at_least=True),
    ],
    _contenders,
)
