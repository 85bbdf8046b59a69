"""Reads from inside a guest, over a window that p2pcloop's chunk cache holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.guests import LIMIT, guest, reads_initramfs, vhost_disk
from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, server, storage_daemon_argv

WINDOW = 64_000_000 // (1 << 20) << 20
OFFSET = 16 << 20


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    initramfs = reads_initramfs(bench)
    ours, theirs = bench.work / "ours.sock", bench.work / "theirs.sock"

    def read(label: str, disk: Argument, device: str) -> Values:
        log = bench.work / f"reads-{label}.log"
        arguments: list[Argument] = [disk, f"initrd={initramfs}", f"bench_disk={device}"]
        arguments += [f"bench_offset={OFFSET}", f"bench_bytes={WINDOW}"]
        with guest(bench, arguments, log) as console:
            text = console.expect(r"BENCH-BEGIN(?s:.*)BENCH-END|BENCH-FAILED.*", LIMIT)[0]
        values = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)\s", text)}
        if "BENCH-FAILED" in text or not values:
            raise BenchError(f"the reads in the guest failed: {text!r}")
        return values

    def served(label: str, argv: list[Argument], socket: Path) -> Values:
        with server(argv, socket, bench.work / f"{label}.log"):
            return read(label, vhost_disk(socket), "/dev/vda")

    block: list[Argument] = [bench.p2pcloop, "block", bench.cloop, "--vhost-user", ours]
    daemon = storage_daemon_argv(bench.image, theirs, writable=False)
    yield {
        "p2pcloop": lambda: served("p2pcloop", block, ours),
        "qemu-storage-daemon": lambda: served("qemu-storage-daemon", daemon, theirs),
        # c: without a lock on the file, which would keep qemu out until the last process is gone.
        "ubd": lambda: read("ubd", f"ubd0rc={bench.image}", "/dev/ubda"),
    }


def _rows(other: str) -> list[Row]:
    def row(title: str, key: str, *, at_least: bool = False) -> Row:
        named = f"{title} / {other}"
        return Row(named, ("p2pcloop", key), 1.0, (other, key), at_least=at_least)

    return [
        row("in the guest, 4 KiB random, depth 1", "random_1_us"),
        row("in the guest, 4 KiB random, depth 64", "random_64_us"),
        row("in the guest, 1 MiB sequential", "sequential_mb_per_s", at_least=True),
    ]


READS = Measure(
    "guest-reads",
    "in-guest reads over 64 MB in the chunk cache, against qemu-storage-daemon and ubd (raw file)",
    {"random_1_us": "µs", "random_64_us": "µs", "sequential_mb_per_s": "MB/s"},
    [*_rows("qemu-storage-daemon"), *_rows("ubd")],
    _contenders,
)
