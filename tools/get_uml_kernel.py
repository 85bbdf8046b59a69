"""Unpacks a newer User-Mode Linux of Debian for this user alone; `p2pcloop boot` then takes it.

From 6.16 on UML can run a guest's processes under seccomp, which boots in half the time. Such a
kernel needs a newer C library than Debian 12 has: that is unpacked beside it, and patchelf makes
the kernel use it. Run through `tools/get-uml-kernel`.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pcloop.errors import NeedsPackageError, P2pcloopError
from p2pcloopd.guest.system.kernel import Kernel, find_kernel, load_modules, unpacked_kernel
from p2pcloopd.guest.system.kernel_words import FIRST_WITH_SECCOMP
from p2pcloopd.programs import find_program
from tools.debian_suite import AptError, debian_mirror, packages

_SUITE = "sid"
_PACKAGES = ("user-mode-linux", "libc6", "libgcc-s1")
"""The kernel and its libraries: glibc opens libgcc_s.so.1 at the first pthread_cancel."""

_PROGRAM = Path("usr/bin/linux.uml")

_TIMEOUT = 300.0


class KernelError(Exception):
    """The packages hold no usable kernel."""


def main(args: Sequence[str] | None = None) -> int:
    """The command `tools/get-uml-kernel`; returns its exit code."""
    options = _parse(args)
    link: Path = options.out / unpacked_kernel().name
    try:
        with _alone(options.out):
            kernel = None if options.force else _present(link)
            if kernel:
                _say(f"kernel {kernel.release} is here already (--force fetches the newest)")
            else:
                kernel = _install(options.suite, link)
                _say(f"kernel {kernel.release} is here")
    except (AptError, KernelError, P2pcloopError, OSError) as err:
        _say(f"{err}")
        if isinstance(err, P2pcloopError) and err.hint:
            _say(f"hint: {err.hint}")
        return 1
    print(link)
    return 0


def _present(link: Path) -> Kernel | None:
    """The kernel that is there; one that does not run (its folder was moved) is none."""
    with suppress(P2pcloopError):
        return find_kernel(link)
    return None


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/get-uml-kernel",
        description="Fetch a newer User-Mode Linux of Debian (about 50 MB, 180 MB unpacked) from"
        " the mirror that apt is set up for, have apt verify it, and unpack it for this user"
        " alone: nothing is installed. Prints the kernel's path; `p2pcloop boot` takes it by"
        " itself (`--kernel system` takes the system's).",
        epilog="Exit codes: 0 the kernel is there, 1 it is not, 2 the command line is wrong.",
    )
    parser.add_argument(
        "--suite", default=_SUITE, help=f"the Debian release to take it from (default {_SUITE})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=unpacked_kernel().parent,
        metavar="DIR",
        help="where it goes (default %(default)s; elsewhere, give the path that is printed to"
        " `p2pcloop boot --kernel` or P2PCLOOP_KERNEL)",
    )
    parser.add_argument("--force", action="store_true", help="fetch it even when one is there")
    options = parser.parse_args(args)
    if not re.fullmatch(r"[a-z][a-z0-9-]*", options.suite):
        parser.error("--suite takes a release's code name")
    options.out = options.out.absolute()
    return options


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder, and wait until no other run works in it."""
    # Its parent is the default node's home, which others must not be able to write.
    for directory in (folder.parent, folder):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _install(suite: str, link: Path) -> Kernel:
    """Fetch, unpack and try a kernel; `link` leads to it once it is whole, and the old one goes."""
    if link.exists() and not link.is_symlink():
        raise KernelError(f"{link} was not made by this tool: choose another --out")
    find_program("patchelf", "patchelf")
    mirror = debian_mirror()
    _say(f"fetching {', '.join(_PACKAGES)} of {suite} from {mirror.uri} (about 50 MB)")
    with packages(mirror, suite, _PACKAGES) as debs:
        version = debs[_PACKAGES[0]].name.split("_")[1]
        # The kernel will hold this path, so it is unpacked where it stays.
        root = Path(tempfile.mkdtemp(prefix=f"{version}-", dir=link.parent))
        try:
            for deb in debs.values():
                _run("dpkg-deb", "--extract", deb, root)
            kernel = _use_own_libraries(root)
            _check(kernel, suite)
        except BaseException:
            shutil.rmtree(root)
            raise
    _lead_to(kernel.path, link)
    return kernel


def _lead_to(program: Path, link: Path) -> None:
    """Make `link` lead to `program`, and delete its former target: that alone is known to be made
    by this tool. Guests that run it have it open."""
    before = link.readlink() if link.is_symlink() else None
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=link.parent)) / link.name
    new.symlink_to(program.relative_to(link.parent))
    new.replace(link)
    new.parent.rmdir()
    if before is not None and before.parts[1:] == _PROGRAM.parts:
        shutil.rmtree(link.parent / before.parts[0], ignore_errors=True)


def _use_own_libraries(root: Path) -> Kernel:
    """Make the kernel under `root` run with the C library under `root`.

    The dynamic linker is named in the program itself: run through `ld.so` by hand, UML finds its
    own stack wrong. RPATH rather than RUNPATH, since the C library opens libraries by it, too.
    """
    program = root / _PROGRAM
    libraries = [path.parent for path in root.rglob("libc.so.6")]
    linkers = [path for folder in libraries for path in folder.glob("ld-linux*.so.*")]
    if not (program.exists() and linkers):
        raise KernelError("the packages have no linux.uml or no C library where Debian has them")
    _run(
        *("patchelf", "--set-interpreter", linkers[0]),
        *("--force-rpath", "--set-rpath", libraries[0], program),
    )
    return find_kernel(program)


def _check(kernel: Kernel, suite: str) -> None:
    """Check that the kernel is faster than the system's, and has the modules of a guest."""
    if kernel.version < FIRST_WITH_SECCOMP:
        least = ".".join(map(str, FIRST_WITH_SECCOMP))
        raise KernelError(
            f"the kernel of {suite} is {kernel.release}; only {least} and later are faster"
        )
    load_modules(kernel, ["virtio_blk"])


def _run(*argv: str | Path) -> None:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT,
            check=False,
        )  # fmt: skip
    except FileNotFoundError as err:
        raise NeedsPackageError(f"{argv[0]} is not installed") from err
    if done.returncode != 0:
        raise KernelError(f"{argv[0]} failed: {done.stderr.strip()}")


def _say(text: str) -> None:
    print(f"get-uml-kernel: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
