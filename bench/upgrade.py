"""A new version of an image: its publishing, and the bytes that a peer with the old one fetches."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from bench import rivals
from bench.guests import LIMIT, PROMPT
from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, node, run_json, tail
from bench.upgrade_pair import PROGRAMS, Pair, upgrade_pair
from p2pcloop.formats.overlay import Overlay
from p2pcloop.units import BLOCK_SIZE
from tools.boot_report import ReportError, read_report
from tools.console import Console, ConsoleError

PLACE = Path(__file__).resolve().parents[1] / "build/upgrade"


def _boot(bench: Bench, link: str, home: Path, command: str) -> int:
    """Boot, run a command in the guest, power off; bytes received meanwhile."""
    log, errors = bench.work / "guest.log", bench.work / "boot.log"
    report = bench.work / "report.json"
    report.unlink(missing_ok=True)
    argv = [str(bench.p2pcloop), "boot", link, "--home", str(home), "--report", str(report)]
    try:
        with Console([*argv, "--cpu", str(bench.cpu)], log=log, errors=errors) as console:
            console.expect(PROMPT, LIMIT)
            console.run(command, LIMIT)
            console.send_line("poweroff")
            console.wait(LIMIT)
        return read_report(report).bytes_received
    except (ConsoleError, ReportError) as err:
        raise BenchError(f"p2pcloop boot: {err}: {tail(errors)}") from err


def _fetch(bench: Bench, link: str, home: Path) -> int:
    told = run_json([bench.p2pcloop, "fetch", link, "--home", home, "--json"])
    return int(told["bytes_received"])


@contextmanager
def publishing(bench: Bench, cloop: Path) -> Iterator[tuple[dict[str, Any], Callable[..., Any]]]:
    """A node that seeds `cloop`: the JSON of `seed`, and a function that publishes an overlay."""
    with node(bench, bench.work / "publisher") as home:
        command: list[Argument] = [
            bench.p2pcloop,
            "seed",
            cloop,
            "--name",
            "base",
            "--home",
            home,
            "--json",
        ]
        base = run_json(command)

        def publish(overlay: Path, label: str) -> Any:  # noqa: ANN401  any JSON
            options = ["--base", base["name"], "--name", label, "--home", home, "--json"]
            return run_json([bench.p2pcloop, "publish", overlay, *options])

        yield base, publish


def _by_p2pcloop(bench: Bench, pair: Pair) -> Values:
    with publishing(bench, pair.cloop) as (base, publish):
        told = publish(pair.overlay, "upgraded")
        with node(bench, bench.work / "booted") as home:
            _boot(bench, base["link"], home, "true")
            run = _boot(bench, told["link"], home, PROGRAMS)
        with node(bench, bench.work / "whole") as home:
            _fetch(bench, base["link"], home)
            whole = _fetch(bench, told["link"], home)
        return {"pack": told["stored"], "index": told["index"], "run": run, "all": whole}


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    pair = upgrade_pair(bench, PLACE)

    def rival(count: Callable[[Path, Path, Path], int]) -> Callable[[], Values]:
        return cache(lambda: {"bytes": count(pair.old, pair.new, bench.work)})

    yield {
        "p2pcloop": cache(lambda: _by_p2pcloop(bench, pair)),
        "zstd -19": rival(rivals.zstd_bytes),
        "rsync": rival(rivals.rsync_bytes),
        "casync": rival(rivals.casync_bytes),
        "xdelta3": rival(rivals.xdelta_bytes),
    }


_RUN = ("p2pcloop", "run")
_STREAM = ("zstd -19", "bytes")
UPGRADE = Measure(
    "upgrade",
    "packages installed in a guest: bytes to a peer that has the base (half an hour)",
    dict.fromkeys(("pack", "index", "run", "all", "bytes"), "B"),
    [
        Row("pack of the delta / zstd -19", ("p2pcloop", "pack"), 1.15, _STREAM),
        Row("fetched to boot and run it / zstd -19", _RUN, 1.1, _STREAM),
        Row("fetched to have all of it / zstd -19", ("p2pcloop", "all"), 1.2, _STREAM),
        Row("fetched to boot and run it / rsync", _RUN, 1, ("rsync", "bytes")),
        Row("fetched to boot and run it / casync", _RUN, 1, ("casync", "bytes")),
        Row("fetched to boot and run it / xdelta3", _RUN, 1, ("xdelta3", "bytes")),
    ],
    _contenders,
)


CHANGED = 50_000_000
"""Bytes that differ: every fourth MiB of the bytes that an installation of packages changed."""


def write_overlay(path: Path, pair: Pair, image_id: bytes) -> None:
    """Make an overlay that holds `CHANGED` bytes of the difference of a pair."""
    numbered = enumerate(rivals.changed_blocks(pair.old, pair.new))
    spread = (block for number, block in numbered if number // 256 % 4 == 0)
    blocks = itertools.islice(spread, CHANGED // BLOCK_SIZE)
    size = pair.old.stat().st_size
    with Overlay.create(path, image_id=image_id, image_size=size) as overlay:
        for offset, block in blocks:
            overlay.write(offset, [memoryview(block)])
        overlay.prepare_flush()()
    os.sync()


def _busy_seconds() -> float:
    """Processor time of the commands that this process has run to their end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _publish(bench: Bench, pair: Pair, overlay: Path) -> Values:
    home = bench.work / "publisher"
    try:
        # A new node each round: it would only refer to a delta that it has published before.
        with publishing(bench, pair.cloop) as (base, publish):
            if not overlay.exists():
                write_overlay(overlay, pair, bytes.fromhex(base["image_id"]))
            busy, start = _busy_seconds(), time.monotonic()
            told = publish(overlay, "changed")
            seconds = time.monotonic() - start
            used = _busy_seconds() - busy
            return {"seconds": seconds, "processor": used, "pack": told["stored"]}
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _publishers(bench: Bench) -> Iterator[Contenders]:
    pair = upgrade_pair(bench, PLACE)
    overlay = bench.work / "mine.delta"
    yield {"p2pcloop": lambda: _publish(bench, pair, overlay)}


PUBLISH = Measure(
    "publish",
    "publish of an overlay with 50 MB of changes, until it is served",
    {"seconds": "s", "processor": "s", "pack": "B"},
    [Row("publish of 50 MB of changes", ("p2pcloop", "seconds"), 5)],
    _publishers,
)
