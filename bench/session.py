"""What a run of `tools/bench` begins and ends with: an image, a directory to work in, a report."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.guests import pinned_cpu
from bench.harness import Bench, BenchError

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / "build/bench"


@contextmanager
def opened_bench(*, tiny: bool = False, cpu: int | None = None) -> Iterator[Bench]:
    """The demo image, built where it is not there yet, and an empty directory.

    Args:
        tiny: busybox instead of Debian.
        cpu: the processor for guests; None: the last one.

    Raises:
        BenchError: the image could not be built; tools/build-image has told why.
    """
    words = [str(CHECKOUT / "tools/build-image"), *(["--tiny"] if tiny else [])]
    built = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode != 0:
        raise BenchError("tools/build-image made no image")
    cloop = CHECKOUT / built.stdout.strip()
    RESULTS.mkdir(parents=True, exist_ok=True)
    chosen = pinned_cpu() if cpu is None else cpu
    # A short name: sockets in it must keep within 108 bytes.
    with tempfile.TemporaryDirectory(prefix="w-", dir=RESULTS) as work:
        program = CHECKOUT / ".venv/bin/p2pcloop"
        yield Bench(cloop.with_suffix(".img"), cloop, program, Path(work), chosen)


def screen() -> Console:
    """Where a run tells how it goes and what came of it."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def write_report(told: Mapping[str, Any], target: Path | None) -> Path:
    """Write a report as JSON, `when` added; where it went.

    Args:
        target: a file; None: a new one in build/bench/, named by the time.
    """
    now = datetime.now(UTC)
    path = target or RESULTS / f"{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps({"when": now.isoformat(), **told}, indent=1))
    return path
