"""The shim that lets UML before 6.13 run on CPUs whose XSAVE area is larger than it expects.

xsave_shim.c describes what it does.
"""

from __future__ import annotations

import re
from pathlib import Path

from p2pcloop.words import tr
from p2pcloopd.guest.system import preload
from p2pcloopd.guest.system.kernel import Kernel

FIXED_IN = (6, 13)
"""The first kernel version that sizes its buffer by the host's XSAVE area."""


def is_needed(kernel: Kernel, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether `kernel` would die at its first user process on this machine's CPU."""
    return kernel.version < FIXED_IN and bool(
        re.search(r"^flags\s*:.*\bamx_tile\b", cpuinfo.read_text(), re.MULTILINE)
    )


def compiled_shim(cache: Path | None = None) -> Path:
    """Return the shared library, as `preload.compiled` does.

    Raises:
        NeedsPackageError: there is no C compiler.
        GuestError: the compiler fails otherwise.
    """
    reason = tr("this CPU has AMX: the User-Mode Linux kernel needs a small shim")
    return preload.compiled(
        "xsave_shim", reason, otherwise=tr(", or give a kernel from 6.13 on"), cache=cache
    )
