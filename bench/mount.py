"""Sequential reads of a whole image as a file: `p2pcloop mount` against nbdfuse.

nbdfuse shows the export of `p2pcloop block` as a file, so both read the same chunks of the same
home by the same code. Each round starts both servers anew, with the pack in the page cache, and
reads the file from end to end, 1 MiB at once:

- first: nothing is decoded, and the page cache has nothing of the file. Decoding takes most of the
  time, and it is the same for both;
- cold: the page cache has nothing of the file, and the server has its decoded chunks at hand (it
  keeps them when it decodes them for the second time, so the file was read twice before);
- warm: the file was just read, and is opened again.

The processor time is that of the reader and of all servers, for the cold read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, fresh_node, processor_seconds, run, run_json, server, serving

_STEP = 1 << 20


def _read(path: Path, *, cold: bool = True) -> float:
    """Read a file from end to end; MB a second. If `cold`, the page cache forgets it before."""
    if cold:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = memoryview(bytearray(_STEP))
    start = time.monotonic()
    with path.open("rb", buffering=0) as file:
        size = 0
        while count := file.readinto(buffer):
            size += count
    if size != path.stat().st_size:
        raise BenchError(f"{path} ended after {size} bytes")
    return size / 1e6 / (time.monotonic() - start)


def _read_often(path: Path, servers: Sequence[int]) -> Values:
    """The rates of all kinds of reads, and the processor time of the cold one."""

    def busy() -> float:
        return time.process_time() + sum(map(processor_seconds, servers))

    values = {"first": _read(path)}
    _read(path)
    before = busy()
    values["cold"] = _read(path)
    values["processor"] = (busy() - before) / (path.stat().st_size / 1e9)
    return values | {"warm": _read(path, cold=False)}


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
                with serving(mount, disk.exists, bench.work / "mount.log") as process:
                    return _read_often(disk, [process.pid])

        def by_nbdfuse() -> Values:
            disk = directory / "nbd"
            block: list[Argument] = [bench.p2pcloop, "block", name, "--nbd", f"unix:{socket}"]
            fuse: list[Argument] = ["nbdfuse", "--readonly", disk, "--unix", socket]
            with _unmounting(directory):
                with server([*block, *at_home], socket, bench.work / "block.log") as nbd:
                    with serving(fuse, disk.exists, bench.work / "nbdfuse.log") as process:
                        return _read_often(disk, [nbd.pid, process.pid])

        bench.cloop.read_bytes()  # into the page cache
        yield {"p2pcloop mount": mounted, "nbdfuse": by_nbdfuse}


def _row(title: str, value: str, bar: float | None) -> Row:
    return Row(title, ("p2pcloop mount", value), bar, ("nbdfuse", value), at_least=True)


MOUNT = Measure(
    "mount",
    "a whole image read as a file through `p2pcloop mount`, against nbdfuse over `p2pcloop block`",
    {"first": "MB/s", "cold": "MB/s", "warm": "MB/s", "processor": "s/GB"},
    [
        _row("first read, nothing decoded / nbdfuse", "first", None),
        _row("cold read / nbdfuse", "cold", 2.0),
        _row("warm read / nbdfuse", "warm", 2.0),
        Row(
            "processor of a cold read / nbdfuse",
            ("p2pcloop mount", "processor"),
            None,
            ("nbdfuse", "processor"),
        ),
    ],
    _contenders,
)
