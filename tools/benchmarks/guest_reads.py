"""Reads from inside a guest, over a window that p2pcloop's chunk cache holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tools.benchmarks.guests import LIMIT, guest, reads_initramfs, vhost_disk
from tools.benchmarks.harness import Bench, BenchError, Contenders, Measure, Row, Values
from tools.benchmarks.processes import Argument, server, storage_daemon_argv

WINDOW = 64_000_000 // (1 << 20) << 20
OFFSET = 16 << 20


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    initramfs = reads_initramfs(bench)
    ours, theirs = bench.work / "ours.sock", bench.work / "theirs.sock"

    def measured(label: str, argv: list[Argument]) -> Values:
        socket = {"p2pcloop": ours}.get(label, theirs)
        log = bench.work / f"reads-{label}.log"
        arguments: list[Argument] = [vhost_disk(socket), f"initrd={initramfs}"]
        arguments += [f"bench_offset={OFFSET}", f"bench_bytes={WINDOW}"]
        with (
            server(argv, socket, bench.work / f"{label}.log"),
            guest(bench, arguments, log) as console,
        ):
            text = console.expect(r"BENCH-BEGIN(?s:.*)BENCH-END|BENCH-FAILED.*", LIMIT)[0]
        values = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)\s", text)}
        if "BENCH-FAILED" in text or not values:
            raise BenchError(f"the reads in the guest failed: {text!r}")
        return values

    block: list[Argument] = [bench.p2pcloop, "block", bench.cloop, "--vhost-user", ours]
    daemon = storage_daemon_argv(bench.image, theirs, writable=False)
    yield {
        "p2pcloop": lambda: measured("p2pcloop", block),
        "qemu-storage-daemon": lambda: measured("qemu-storage-daemon", daemon),
    }


def _row(title: str, unit: str, key: str, *, at_least: bool = False) -> Row:
    return Row(title, unit, ("p2pcloop", key), 1.0, ("qemu-storage-daemon", key), at_least=at_least)


READS = Measure(
    "guest-reads",
    "in-guest reads over 64 MB in the chunk cache, against qemu-storage-daemon with the raw file",
    [
        _row("4 KiB random, depth 1", "µs", "random_1_us"),
        _row("4 KiB random, depth 64", "µs", "random_64_us"),
        _row("1 MiB sequential", "MB/s", "sequential_mb_per_s", at_least=True),
    ],
    _contenders,
)
