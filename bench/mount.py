"""Sequential reads of a whole image as a file: `p2pcloop mount` against nbdfuse.

nbdfuse shows the export of `p2pcloop block` as a file, so both read the same chunks of the same
home by the same code. Each round starts both servers anew, with the pack in the page cache, and
reads the file three times from end to end, 1 MiB at once:

- first: nothing is decoded, and the page cache has nothing of the file;
- cold: the page cache has nothing of the file, the server has decoded it once;
- warm: the file was just read, and is opened again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, fresh_node, run, run_json, server, serving

_STEP = 1 << 20


def _read(path: Path) -> float:
    """Read a file from end to end; MB a second."""
    buffer = memoryview(bytearray(_STEP))
    start = time.monotonic()
    with path.open("rb", buffering=0) as file:
        size = 0
        while count := file.readinto(buffer):
            size += count
    if size != path.stat().st_size:
        raise BenchError(f"{path} ended after {size} bytes")
    return size / 1e6 / (time.monotonic() - start)


def _read_thrice(path: Path) -> Values:
    first = _read(path)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {"first": first, "cold": _read(path), "warm": _read(path)}


@contextmanager
def _unmounting(directory: Path) -> Iterator[None]:
    directory.mkdir(exist_ok=True)
    try:
        yield
    finally:
        run(["sh", "-c", 'fusermount3 -u -z "$1" 2>/dev/null || true', "sh", directory])


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    directory, socket = bench.work / "mount", bench.work / "nbd.sock"
    with fresh_node(bench, "home") as home:
        seeding: list[Argument] = [bench.p2pcloop, "seed", bench.cloop, "--name", "bench"]
        name = run_json([*seeding, "--json", "--home", home])["name"]
        at_home: list[Argument] = ["--home", home]

        def mounted() -> Values:
            disk = directory / name / "disk.img"
            mount: list[Argument] = [bench.p2pcloop, "mount", directory, *at_home]
            with _unmounting(directory):
                with serving(mount, disk.exists, bench.work / "mount.log"):
                    return _read_thrice(disk)

        def by_nbdfuse() -> Values:
            disk = directory / "nbd"
            block: list[Argument] = [bench.p2pcloop, "block", name, "--nbd", f"unix:{socket}"]
            fuse: list[Argument] = ["nbdfuse", "--readonly", disk, "--unix", socket]
            with _unmounting(directory):
                with server([*block, *at_home], socket, bench.work / "block.log"):
                    with serving(fuse, disk.exists, bench.work / "nbdfuse.log"):
                        return _read_thrice(disk)

        bench.cloop.read_bytes()  # into the page cache
        yield {"p2pcloop mount": mounted, "nbdfuse": by_nbdfuse}


def _row(title: str, value: str, bar: float | None) -> Row:
    return Row(title, ("p2pcloop mount", value), bar, ("nbdfuse", value), at_least=True)


MOUNT = Measure(
    "mount",
    "a whole image read as a file through `p2pcloop mount`, against nbdfuse over `p2pcloop block`",
    {"first": "MB/s", "cold": "MB/s", "warm": "MB/s"},
    [
        _row("first read, nothing decoded / nbdfuse", "first", None),
        _row("cold read / nbdfuse", "cold", 2.0),
        _row("warm read / nbdfuse", "warm", 2.0),
    ],
    _contenders,
)
