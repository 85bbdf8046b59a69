"""From a cloop file to a node that serves it, against reading and hashing it once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, daemon_pid, export_cloop, fresh_node, processor_seconds, run
from p2pcloop.formats.cloop import open_cloop

CODECS = ("zlib", "xz", "lz4", "lzo")
SEED_SIZE = 300_000_000
"""Bytes of the cloops that are seeded."""

_UNITS = {"seconds": "s", "processor": "s", "cores": "", "memory": "B"}


_LOOK_SECONDS = 0.02


def _run(argv: list[Argument]) -> dict[str, float]:
    """Run a program to its end: seconds, processor time, and the most memory that it had.

    `ru_maxrss` would count this process's own memory, which the new one has until its exec.
    """
    quiet, start = subprocess.DEVNULL, time.monotonic()
    process = subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet)
    memory = 0
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        memory = max(memory, _peak_memory(process.pid))
        time.sleep(_LOOK_SECONDS)
    seconds = time.monotonic() - start
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        shown = " ".join(map(str, argv[:3]))
        raise BenchError(f"{shown} ... ended with {process.returncode}")
    return {"seconds": seconds, "processor": usage.ru_utime + usage.ru_stime, "memory": memory}


def _peak_memory(pid: int) -> int:
    """Bytes that a process had in memory at most since its exec; 0 once it has ended (proc(5))."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _seed(bench: Bench, cloop: Path) -> Values:
    """From the command to a node that serves a cloop; the memory is the command's."""
    with fresh_node(bench, "seeder") as home:
        values = _run([bench.p2pcloop, "seed", cloop, "--name", "bench", "--home", home])
        # p2pcloopd was started by the command, and goes on.
        values["processor"] += processor_seconds(daemon_pid(home))
        return values | {"cores": values["processor"] / values["seconds"]}


def _least(cloop: Path) -> Values:
    """The same library calls in as many threads as there are processors."""
    values = _run([sys.executable, "-m", "bench.seed_limit", cloop])
    return values | {"cores": values["processor"] / values["seconds"]}


def _unpack_and_hash(bench: Bench) -> Values:
    start = time.monotonic()
    run(["extract_compressed_fs", bench.cloop, "/dev/null"])
    run(["sha256sum", bench.image])
    return {"seconds": time.monotonic() - start}


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    yield {
        "p2pcloop": lambda: _seed(bench, bench.cloop),
        "extract + sha256sum": lambda: _unpack_and_hash(bench),
    }


SEED = Measure(
    "seed",
    "p2pcloop seed until it serves, against extract_compressed_fs plus sha256sum",
    _UNITS,
    [
        Row(
            "seed / extract + sha256sum",
            ("p2pcloop", "seconds"),
            1.2,
            ("extract + sha256sum", "seconds"),
        ),
        Row("processors busy while seeding", ("p2pcloop", "cores"), 1.2, at_least=True),
    ],
    _contenders,
)


def repeat_cloop(source: Path, dest: Path, size: int) -> None:
    """Write a cloop V4.0 of at least `size` bytes: the blocks of a smaller one, again and again.

    Its header is last. Each copy of a block is an entry of its own, so a reader cannot know that
    some are equal.
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


def _hash(cloop: Path) -> Values:
    start = time.monotonic()
    run(["sha256sum", cloop])
    return {"seconds": time.monotonic() - start}


@contextmanager
def _seeders(bench: Bench) -> Iterator[Contenders]:
    contenders: dict[str, Callable[[], Values]] = {}
    for codec in CODECS:
        small, large = bench.work / "small.cloop", bench.work / f"{codec}.cloop"
        export_cloop(bench, small, "--cloop-format", "4", "--codec", codec)
        repeat_cloop(small, large, SEED_SIZE)
        run(["sha256sum", large])  # into the page cache
        contenders[codec] = partial(_seed, bench, large)
        contenders[f"least {codec}"] = partial(_least, large)
        contenders[f"sha256sum {codec}"] = partial(_hash, large)
    yield contenders


def _seed_rows(codec: str) -> list[Row]:
    return [
        Row(
            f"seed of a cloop V4.0, {codec} / sha256sum",
            (codec, "seconds"),
            2.5,
            (f"sha256sum {codec}", "seconds"),
        ),
        Row(
            f"the same, {codec} / its library calls in threads",
            (codec, "seconds"),
            None,
            (f"least {codec}", "seconds"),
        ),
        Row(
            f"its processor time, {codec} / that of the library calls",
            (codec, "processor"),
            None,
            (f"least {codec}", "processor"),
        ),
        Row(f"its memory, {codec}", (codec, "memory"), 200e6),
    ]


CLOOP_SEED = Measure(
    "cloop-seed",
    "p2pcloop seed of cloops V4.0 of 300 MB, by codec, against sha256sum of the file",
    _UNITS,
    [row for codec in CODECS for row in _seed_rows(codec)],
    _seeders,
)
