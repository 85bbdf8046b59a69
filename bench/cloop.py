"""cloops: writing V2.0 against the cloop tool, reading and seeding V4.0 by its codecs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.nbd_reads import JOBS, read_rate
from bench.processes import Argument, node, run, server
from p2pcloop.formats.cloop import open_cloop

CODECS = ("zlib", "xz", "lz4", "lzo")
SEED_SIZE = 300_000_000
"""Bytes of the cloops that are seeded."""


def _export(bench: Bench, cloop: Path, *options: str) -> Path:
    run([bench.p2pcloop, "export", bench.image, cloop, "--force", *options])
    return cloop


def _timed_write(cloop: Path, argv: list[Argument]) -> Values:
    start = time.monotonic()
    run(argv)
    seconds = time.monotonic() - start
    size = cloop.stat().st_size
    cloop.unlink()
    return {"seconds": seconds, "bytes": size}


@contextmanager
def _writers(bench: Bench) -> Iterator[Contenders]:
    bench.image.read_bytes()  # into the page cache
    ours, theirs = bench.work / "ours.cloop", bench.work / "theirs.cloop"
    tool: list[Argument] = ["create_compressed_fs", "-q", "-B", "65536", "-L", "9", "-t", "2"]
    yield {
        "p2pcloop": lambda: _timed_write(ours, [bench.p2pcloop, "export", bench.image, ours]),
        "create_compressed_fs": lambda: _timed_write(theirs, [*tool, bench.image, theirs]),
    }


def _write_row(title: str, unit: str, key: str) -> Row:
    return Row(title, unit, ("p2pcloop", key), 1, ("create_compressed_fs", key))


WRITE = Measure(
    "cloop-write",
    "p2pcloop export to a cloop V2.0, against create_compressed_fs -L 9 -t 2",
    [
        _write_row("cloop V2.0 of the image / create_compressed_fs -L 9 -t 2", "s", "seconds"),
        _write_row("its size / that of theirs", "B", "bytes"),
    ],
    _writers,
)


@contextmanager
def _readers(bench: Bench) -> Iterator[Contenders]:
    socket = bench.work / "nbd.sock"

    def rates(cloop: Path) -> Values:
        block: list[Argument] = [bench.p2pcloop, "block", cloop, "--nbd", f"unix:{socket}"]
        values = {}
        for name, job in JOBS.items():
            with server(block, socket, bench.work / "block.log"):
                values[name] = read_rate(socket, job)
        return values

    xz = _export(bench, bench.work / "xz.cloop", "--codec", "xz")
    yield {"V4.0 xz": lambda: rates(xz), "V2.0": lambda: rates(bench.cloop)}


READS = Measure(
    "cloop-reads",
    "reads over the whole image by fio over NBD, from a cloop V4.0 of xz and from V2.0",
    [
        Row(f"V4.0 xz / V2.0, {title}", "/s", ("V4.0 xz", job), None, ("V2.0", job))
        for job, title in (
            ("random_1", "4 KiB random, depth 1"),
            ("random_32", "4 KiB random, depth 32"),
            ("sequential_1", "128 KiB sequential, depth 1"),
            ("sequential_32", "128 KiB sequential, depth 32"),
        )
    ],
    _readers,
)


def repeat_cloop(source: Path, dest: Path, size: int) -> None:
    """Write a cloop V4.0 of at least `size` bytes: the blocks of a smaller one, again and again.

    Its header is last; each block lies there by itself, so nobody can know that some are equal.
    """
    with open_cloop(source) as cloop:
        entries, start = cloop.index.entries, cloop.index.extent(0)[0]
        last = len(entries) - 1
        blocks = source.read_bytes()[start : sum(cloop.index.extent(last))]
    header = bytearray(source.read_bytes()[:136])
    times = -(-size // len(blocks))
    header[132:] = (len(entries) * times).to_bytes(4, "big")
    first = b"blocks of a cloop, repeated\n"
    with dest.open("wb") as file:
        file.write(first)
        for _ in range(times):
            file.write(blocks)
        for turn in range(times):
            moved = len(first) + turn * len(blocks) - start
            file.write(b"".join((entry + moved).to_bytes(8, "big") for entry in entries))
        file.write((len(first) + times * len(blocks)).to_bytes(8, "big") + header)


def _seed(bench: Bench, cloop: Path) -> Values:
    """Also the memory of the command, which reads and hashes all of it."""
    home = bench.work / "seeder"
    try:
        with node(bench, home):
            start = time.monotonic()
            argv: list[Argument] = [
                bench.p2pcloop,
                "seed",
                cloop,
                "--name",
                "bench",
                "--home",
                home,
            ]
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise BenchError(f"p2pcloop seed {cloop} ended with {process.returncode}")
            seconds = time.monotonic() - start
            return {"seconds": seconds, "memory": usage.ru_maxrss * 1024}
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _hash(cloop: Path) -> Values:
    start = time.monotonic()
    run(["sha256sum", cloop])
    return {"seconds": time.monotonic() - start}


@contextmanager
def _seeders(bench: Bench) -> Iterator[Contenders]:
    contenders: dict[str, Callable[[], Values]] = {}
    for codec in CODECS:
        small, large = bench.work / "small.cloop", bench.work / f"{codec}.cloop"
        _export(bench, small, "--cloop-format", "4", "--codec", codec)
        repeat_cloop(small, large, SEED_SIZE)
        large.read_bytes()  # into the page cache
        contenders[codec] = partial(_seed, bench, large)
        contenders[f"sha256sum {codec}"] = partial(_hash, large)
    yield contenders


def _seed_rows(codec: str) -> list[Row]:
    return [
        Row(
            f"seed of a cloop V4.0, {codec} / sha256sum",
            "s",
            (codec, "seconds"),
            2.5,
            (f"sha256sum {codec}", "seconds"),
        ),
        Row(f"its memory, {codec}", "B", (codec, "memory"), 200e6),
    ]


SEED = Measure(
    "cloop-seed",
    "p2pcloop seed of cloops V4.0 of 300 MB, by codec, against sha256sum of the file",
    [row for codec in CODECS for row in _seed_rows(codec)],
    _seeders,
)
