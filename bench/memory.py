"""Memory of p2pcloopd and of the block server after a cold boot and a sweep over the image.

This counts a process's own pages and those of files (RssAnon, RssFile). It does not count the
guest's memory, which the block server shares (RssShmem).
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.guests import LIMIT, LOGIN, boot_initramfs, disk_arguments, guest
from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.limits import (
    TERABYTE,
    write_empty,
    write_largest_map,
    write_largest_table,
)
from bench.nbd_reader import NbdReader
from bench.nbd_reads import JOBS, read_rate
from bench.processes import Argument, daemon_pid, fresh_node, seeding, server
from p2pcloop.formats.chunk_table import ENTRIES_PER_PAGE
from p2pcloop.formats.index import MAX_CHUNKS
from p2pcloop.store.home import Home
from p2pcloop.units import BLOCK_SIZE


def resident_mb(pid: int) -> float:
    """Megabytes of a process and of all its descendants, shared memory left out.

    Raises:
        BenchError: it has ended. Descendants that have ended have no memory.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        status, children = "", []
    sizes = re.findall(r"^Rss(?:Anon|File):\s*(\d+) kB$", status, re.MULTILINE)
    if len(sizes) != 2:
        raise BenchError(f"the process {pid} has ended, and has no memory")
    total = sum(map(int, sizes)) * 1024 / 1e6
    for child in children:
        with suppress(BenchError):
            total += resident_mb(int(child))
    return total


def peak_mb(pid: int) -> float:
    """The largest memory of a process alone so far, in megabytes, shared memory included."""
    status = Path(f"/proc/{pid}/status").read_text()
    (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return int(peak) * 1024 / 1e6


def _after_boot(bench: Bench, link: str, home: Path) -> Values:
    socket = bench.work / "vhost.sock"
    block: list[Argument] = [bench.p2pcloop, "block", link, "--home", home]
    arguments = disk_arguments(socket, boot_initramfs(bench))
    overlay = bench.work / "mine.delta"
    overlay.unlink(missing_ok=True)
    with server(
        [*block, "--vhost-user", socket, "--overlay", overlay], socket, bench.work / "block.log"
    ) as process:
        with guest(bench, arguments, bench.work / "memory-guest.log") as console:
            console.expect(LOGIN, LIMIT)
            return {"node": resident_mb(daemon_pid(home)), "block": resident_mb(process.pid)}


def _after_sweep(bench: Bench) -> Values:
    socket = bench.work / "nbd.sock"
    argv: list[Argument] = [bench.p2pcloop, "block", bench.cloop, "--nbd", f"unix:{socket}"]
    with server(argv, socket, bench.work / "block.log") as process:
        read_rate(socket, JOBS["random_32"])
        return {"block": resident_mb(process.pid)}


def _at_limit(
    bench: Bench, write: Callable[[Home], None], use: Callable[[NbdReader], None], *arguments: Path
) -> Values:
    """Memory of a block server that has served an image as large as the formats allow."""
    folder = bench.work / "limits"
    shutil.rmtree(folder, ignore_errors=True)
    write(Home.at(folder))
    socket = bench.work / "limits.sock"
    argv: list[Argument] = [sys.executable, "-m", "bench.limits", folder, socket]
    try:
        with server([*argv, *arguments], socket, bench.work / "limits.log") as process:
            reader = NbdReader(socket)
            use(reader)
            values = {"block": resident_mb(process.pid), "peak": peak_mb(process.pid)}
            reader.close()
        return values
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in arguments:
            path.unlink(missing_ok=True)


def _discard(reader: NbdReader) -> None:
    for offset in range(0, TERABYTE, 1 << 30):
        reader.trim(offset, 1 << 30)
    reader.flush()


def _read_every_page(reader: NbdReader) -> None:
    for page in range(MAX_CHUNKS // ENTRIES_PER_PAGE):
        reader.read(page * ENTRIES_PER_PAGE * BLOCK_SIZE)


def _read_first(reader: NbdReader) -> None:
    reader.read(0)


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    with seeding(bench) as link:

        def cold_boot() -> Values:
            with fresh_node(bench, "reader") as home:
                return _after_boot(bench, link, home)

        yield {
            "cold boot": cold_boot,
            "random reads": lambda: _after_sweep(bench),
            "discarded": lambda: _at_limit(
                bench, write_empty, _discard, bench.work / "limits.delta"
            ),
            "largest table": lambda: _at_limit(bench, write_largest_table, _read_every_page),
            "largest map": lambda: _at_limit(bench, write_largest_map, _read_first),
            "seeder": lambda: {"node": resident_mb(daemon_pid(bench.work / "seeder"))},
        }


MEMORY = Measure(
    "memory",
    "p2pcloopd and block server after a cold boot; block server after random reads",
    dict.fromkeys(("node", "block", "peak"), "MB"),
    [
        Row("p2pcloopd, reader after a cold boot", ("cold boot", "node"), 150),
        Row("p2pcloopd, seeder", ("seeder", "node"), 150),
        Row("block server after a cold boot", ("cold boot", "block"), 150),
        Row("block server, its cache full", ("random reads", "block"), 150),
        Row("block server, 1 TiB discarded", ("discarded", "peak"), 150),
        Row("block server, chunk table of 2^24", ("largest table", "peak"), 150),
        Row("block server, map of 2^20 runs", ("largest map", "peak"), 150),
    ],
    _contenders,
)
