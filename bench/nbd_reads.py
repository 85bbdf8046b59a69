"""Reads over a whole image through NBD, by fio: random and sequential, one and many at a time.

Every server starts anew for every job, with the image file in the page cache: so p2pcloop begins
each with nothing decoded. Servers and fio share the same processors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, export_cloop, run_json, server

SECONDS = 6


@dataclass(frozen=True, slots=True)
class Job:
    """Reads by fio: `pattern` is its `--rw`, `size` bytes at once, `depth` of them in flight."""

    pattern: str
    size: int
    depth: int


JOBS = {
    "random_1": Job("randread", 4096, 1),
    "random_32": Job("randread", 4096, 32),
    "sequential_1": Job("read", 128 << 10, 1),
    "sequential_32": Job("read", 128 << 10, 32),
}


def read_rate(socket: Path, job: Job) -> float:
    """Reads a second from the NBD server at `socket`."""
    told = run_json(
        [
            *("fio", "--name=reads", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}"),
            *(f"--rw={job.pattern}", f"--bs={job.size}", f"--iodepth={job.depth}"),
            *("--randrepeat=1", "--time_based", f"--runtime={SECONDS}", "--output-format=json"),
        ]
    )
    try:
        return float(told["jobs"][0]["read"]["iops"])
    except (KeyError, IndexError, TypeError) as err:
        raise BenchError(f"fio reported no rate: {err}") from err


def _rates(argv: list[Argument], socket: Path, log: Path) -> Values:
    values = {}
    for name, job in JOBS.items():
        with server(argv, socket, log):
            values[name] = read_rate(socket, job)
    return values


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    def rates(label: str, argv: list[Argument]) -> Values:
        return _rates(argv, socket, bench.work / f"{label}.log")

    def qemu(form: str, image: Path) -> list[Argument]:
        argv: list[Argument] = ["qemu-nbd", "-f", form, "--read-only", "--persistent"]
        return [*argv, "--shared=4", f"--socket={socket}", image]

    socket = bench.work / "nbd.sock"
    for image in (bench.image, bench.cloop):
        image.read_bytes()  # into the page cache
    block: list[Argument] = [bench.p2pcloop, "block", bench.cloop, "--nbd", f"unix:{socket}"]
    nbdkit: list[Argument] = ["nbdkit", "-f", "-r", "-U", socket, "file", bench.image]
    yield {
        "p2pcloop": lambda: rates("p2pcloop", block),
        "qemu-nbd -f raw": lambda: rates("raw", qemu("raw", bench.image)),
        "qemu-nbd -f cloop": lambda: rates("cloop", qemu("cloop", bench.cloop)),
        "nbdkit file": lambda: rates("nbdkit", nbdkit),
    }


def _row(job: str, title: str, other: str, bar: float | None = None) -> Row:
    title = f"{title} / {other}"
    return Row(title, ("p2pcloop", job), bar, (other, job), at_least=True)


READS = Measure(
    "nbd-reads",
    "reads over the whole cloop by fio over NBD, against qemu-nbd (raw, cloop) and nbdkit (raw)",
    dict.fromkeys(JOBS, "/s"),
    [
        _row("random_32", "4 KiB random, depth 32", "qemu-nbd -f raw", 1.0),
        _row("random_32", "4 KiB random, depth 32", "qemu-nbd -f cloop", 10.0),
        _row("random_32", "4 KiB random, depth 32", "nbdkit file"),
        _row("random_1", "4 KiB random, depth 1", "qemu-nbd -f raw"),
        _row("random_1", "4 KiB random, depth 1", "nbdkit file"),
        _row("sequential_1", "128 KiB sequential, depth 1", "qemu-nbd -f raw", 1.0),
        _row("sequential_1", "128 KiB sequential, depth 1", "nbdkit file"),
        _row("sequential_32", "128 KiB sequential, depth 32", "qemu-nbd -f raw", 1.0),
        _row("sequential_32", "128 KiB sequential, depth 32", "nbdkit file"),
    ],
    _contenders,
)


@contextmanager
def _readers(bench: Bench) -> Iterator[Contenders]:
    socket = bench.work / "nbd.sock"

    def rates(cloop: Path) -> Values:
        argv: list[Argument] = [bench.p2pcloop, "block", cloop, "--nbd", f"unix:{socket}"]
        return _rates(argv, socket, bench.work / "block.log")

    xz = export_cloop(bench, bench.work / "xz.cloop", "--codec", "xz")
    yield {"V4.0 xz": lambda: rates(xz), "V2.0": lambda: rates(bench.cloop)}


CLOOP_READS = Measure(
    "cloop-reads",
    "reads over the whole image by fio over NBD, from a cloop V4.0 of xz and from V2.0",
    dict.fromkeys(JOBS, "/s"),
    [
        Row(f"V4.0 xz / V2.0, {title}", ("V4.0 xz", job), None, ("V2.0", job))
        for job, title in (
            ("random_1", "4 KiB random, depth 1"),
            ("random_32", "4 KiB random, depth 32"),
            ("sequential_1", "128 KiB sequential, depth 1"),
            ("sequential_32", "128 KiB sequential, depth 32"),
        )
    ],
    _readers,
)
