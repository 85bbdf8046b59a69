"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from bench.harness import Bench
from p2pcloopd.guest.kernel import find_kernel


def machine_facts(bench: Bench) -> dict[str, str | int]:
    """Processor, memory, programs and images, for the JSON and the table's head."""
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    kernel = find_kernel()
    return {
        "processor": model[1] if model else platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "guest_cpu": bench.cpu,
        "memory_bytes": int(memory[1]) * 1024 if memory else 0,
        "host_kernel": platform.release(),
        "guest_kernel": kernel.release,
        "guest_kernel_file": str(kernel.path),
        "python": platform.python_version(),
        "libtorrent": version("libtorrent"),
        "qemu": _first_line("qemu-storage-daemon", "--version"),
        "fio": _first_line("fio", "--version"),
        "commit": _first_line("git", "describe", "--always", "--dirty"),
        "image_bytes": bench.image.stat().st_size,
        "cloop_bytes": bench.cloop.stat().st_size,
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        return "not installed"
    return done.stdout.partition("\n")[0].strip() or "unknown"
