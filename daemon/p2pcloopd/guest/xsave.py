"""The shim that lets UML before 6.13 run on CPUs whose XSAVE area is larger than it expects.

xsave_shim.c describes what it does. It is compiled once, into the user's cache directory.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs

from p2pcloop.errors import GuestError, NeedsPackageError
from p2pcloopd.guest.kernel import Kernel

FIXED_IN = (6, 13)
"""The first kernel version that sizes its buffer by the host's XSAVE area."""

_COMPILE_TIMEOUT = 60.0


def is_needed(kernel: Kernel, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether `kernel` would die at its first user process on this machine's CPU."""
    return kernel.version < FIXED_IN and bool(
        re.search(r"^flags\s*:.*\bamx_tile\b", cpuinfo.read_text(), re.MULTILINE)
    )


def compiled_shim(cache: Path | None = None) -> Path:
    """Return the shared library. It is compiled unless `cache`, by default the user's cache
    directory, has it for this source. Two processes may do so at once: the file appears whole.

    Raises:
        NeedsPackageError: there is no C compiler.
        GuestError: the compiler fails otherwise.
    """
    source = Path(__file__).with_name("xsave_shim.c").read_bytes()
    if cache is None:
        cache = platformdirs.user_cache_path("p2pcloop")
    shim = cache / f"xsave-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not shim.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".xsave-") as scratch:
            built = Path(scratch) / "shim.so"
            _compile(source, built)
            built.replace(shim)
    return shim


def _compile(source: bytes, output: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    hint = "apt-get install gcc libc6-dev"
    if compiler is None:
        raise NeedsPackageError(
            "this CPU has AMX: the User-Mode Linux kernel needs a small shim, "
            "and there is no C compiler to build it",
            hint=hint + ", or give a kernel from 6.13 on",
        )
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-x", "c", "-o", output, "-"],
        input=source, capture_output=True, timeout=_COMPILE_TIMEOUT, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        if "No such file" in text:
            raise NeedsPackageError(
                f"the C compiler lacks the C library's headers: {text.splitlines()[0]}", hint=hint
            )
        raise GuestError(f"the XSAVE shim does not compile: {text[:500]}")
