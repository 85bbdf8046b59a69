"""Sources in C of resources/: libraries for LD_PRELOAD, and programs for a first root, which has no
libraries. A distribution's package brings them compiled; else they are compiled once on this
machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs

from p2pcloop.errors import GuestError, NeedsPackageError
from p2pcloop.words import tr

_FOLDER = Path(__file__).parent.parent / "resources"
_PACKAGED = _FOLDER / "compiled"
_COMPILE_TIMEOUT = 60.0
_HINT = "apt-get install gcc libc6-dev"


_LIBRARY = ("-shared", "-fPIC")
_PROGRAM = ("-static", "-s")
_PROGRAMS = ("nbd_root",)
"""The sources that are compiled as programs, for `compile_all`."""


def compiled(name: str, reason: str, *, otherwise: str = "", cache: Path | None = None) -> Path:
    """Return the shared library of NAME.c. It is compiled unless the package of p2pcloop has it for
    this source, or `cache` has, which by default is the user's cache directory. Two processes may
    do so at once: the file appears whole.

    Args:
        name: of the source.
        reason: a clause that says why it is needed.
        otherwise: what else the user can do, for the hint.

    Raises:
        NeedsPackageError: there is no C compiler.
        GuestError: the compiler fails otherwise.
    """
    return _built(f"{name}.c", _LIBRARY, ".so", reason, _HINT + otherwise, cache)


def compiled_program(name: str, reason: str, *, cache: Path | None = None) -> Path:
    """Return the program of NAME.c, linked statically; arguments and errors as for `compiled`."""
    return _built(f"{name}.c", _PROGRAM, "", reason, _HINT, cache)


def compile_all(folder: Path) -> None:
    """Compile every source into a folder, for a package; errors as for `compiled`."""
    for source in sorted(_FOLDER.glob("*.c")):
        build = compiled_program if source.stem in _PROGRAMS else compiled
        build(source.stem, tr("the package brings it"), cache=folder)


def _built(
    source_name: str,
    options: tuple[str, ...],
    suffix: str,
    reason: str,
    hint: str,
    cache: Path | None,
) -> Path:
    source = (_FOLDER / source_name).read_bytes()
    name = source_name.removesuffix(".c")
    file = f"{name}-{hashlib.sha256(source).hexdigest()[:16]}{suffix}"
    if cache is None:
        if (_PACKAGED / file).exists():
            return _PACKAGED / file
        cache = platformdirs.user_cache_path("p2pcloop")
    output = cache / file
    if not output.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
            built = Path(scratch) / "output"
            _compile(source, built, options, reason, hint)
            with built.open("rb") as made:
                os.fsync(made.fileno())  # a part of it would be taken for all of it for ever
            built.replace(output)
    return output


def _compile(source: bytes, output: Path, options: tuple[str, ...], reason: str, hint: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NeedsPackageError(
            tr("{reason}, and there is no C compiler to build it", reason=reason), hint=hint
        )
    done = subprocess.run(
        [compiler, *options, "-O2", "-Wall", "-x", "c", "-o", output, "-"],
        input=source, capture_output=True, timeout=_COMPILE_TIMEOUT, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        if "No such file" in text or "cannot find -lc" in text:
            raise NeedsPackageError(
                tr(
                    "the C compiler lacks the C library's headers: {splitlines}",
                    splitlines=text.splitlines()[0],
                ),
                hint=hint,
            )
        raise GuestError(
            tr("{reason}, which does not compile: {text}", reason=reason, text=text[:500])
        )
