"""How long `publish` takes: from the command to a delta that is served."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, Contenders, Measure, Row, Values
from bench.rivals import changed_blocks
from bench.upgrade import PLACE, publishing
from bench.upgrade_pair import Pair, upgrade_pair
from p2pcloop.formats.overlay import Overlay
from p2pcloop.units import BLOCK_SIZE

CHANGED = 50_000_000
"""Bytes that differ: of those that an installation of packages changed, every fourth MiB."""


def write_overlay(path: Path, pair: Pair, image_id: bytes) -> None:
    """Make an overlay that holds `CHANGED` bytes of what the pair differs in."""
    numbered = enumerate(changed_blocks(pair.old, pair.new))
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
        # A node of its own each round: what it has published before it would only refer to.
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
def _contenders(bench: Bench) -> Iterator[Contenders]:
    pair = upgrade_pair(bench, PLACE)
    overlay = bench.work / "mine.delta"
    yield {"p2pcloop": lambda: _publish(bench, pair, overlay)}


PUBLISH = Measure(
    "publish",
    "publish of an overlay with 50 MB of changes, until it is served",
    [Row("publish of 50 MB of changes", "s", ("p2pcloop", "seconds"), 5)],
    _contenders,
)
