"""The start of a run of `tools/bench`: an image, a folder, facts about the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from bench.guests import pinned_cpu
from bench.harness import Bench, BenchError
from p2pcloopd.guest.system.kernel import find_kernel

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / "build/bench"
PROGRAM = CHECKOUT / ".venv/bin/p2pcloop"


@contextmanager
def opened_bench(*image: str, cpu: int | None = None, program: Path = PROGRAM) -> Iterator[Bench]:
    """An image, built if it is not there yet, and an empty directory.

    Args:
        image: options of tools/build-image; without any, it is the demo image.
        cpu: the processor for guests; None: the last one.
        program: the p2pcloop to measure.

    Raises:
        BenchError: the image could not be built (tools/build-image has printed the reason), or
            there is no such program.
    """
    if not os.access(program, os.X_OK):
        raise BenchError(f"{program} is no program: run tools/setup in its checkout")
    command = [str(CHECKOUT / "tools/build-image"), *image]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode != 0:
        raise BenchError("tools/build-image made no image")
    cloop = CHECKOUT / built.stdout.strip()
    RESULTS.mkdir(parents=True, exist_ok=True)
    chosen = pinned_cpu() if cpu is None else cpu
    # A short name: sockets in it must keep within 108 bytes.
    with tempfile.TemporaryDirectory(prefix="w-", dir=RESULTS) as work:
        yield Bench(cloop.with_suffix(".img"), cloop, program.absolute(), Path(work), chosen)


def screen() -> Console:
    """The console for progress and results."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def machine_facts(bench: Bench) -> dict[str, str | int]:
    """Processor, memory, programs and images; no path of this machine is among them."""
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    checkout = bench.p2pcloop.resolve().parents[2]
    return {
        "processor": model[1] if model else platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "guest_cpu": bench.cpu,
        "memory_bytes": int(memory[1]) * 1024 if memory else 0,
        "host_kernel": platform.release(),
        "guest_kernel": find_kernel().release,
        "python": platform.python_version(),
        "libtorrent": version("libtorrent"),
        "qemu": _first_line("qemu-storage-daemon", "--version"),
        "fio": _first_line("fio", "--version"),
        "commit": _first_line("git", "-C", str(checkout), "describe", "--always", "--dirty"),
        "image_bytes": bench.image.stat().st_size,
        "cloop_bytes": bench.cloop.stat().st_size,
    }


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        return "not installed"
    return done.stdout.partition("\n")[0].strip() or "unknown"
