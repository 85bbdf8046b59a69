"""Unpacks a newer User-Mode Linux of Debian for this user alone; `p2pcloop boot` then takes it.

From 6.16 on UML can run a guest's processes under seccomp, which boots in half the time. Such a
kernel needs a newer C library than Debian 12 has: that is unpacked beside it, and patchelf makes
the kernel use it. Run through `tools/get-uml-kernel`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from p2pcloopd.guest.system.kernel import Kernel, find_kernel, load_modules, unpacked_kernel
from p2pcloopd.guest.system.kernel_words import FIRST_WITH_SECCOMP
from p2pcloopd.programs import find_program
from tools.debian_suite import debian_mirror, packages
from tools.kernel_folder import KernelError, KernelTool, new_tree, run_program

_PACKAGES = ("user-mode-linux", "libc6", "libgcc-s1")
"""The kernel and its libraries: glibc opens libgcc_s.so.1 at the first pthread_cancel."""

_PROGRAM = Path("usr/bin/linux.uml")


def main(args: Sequence[str] | None = None) -> int:
    """The command `tools/get-uml-kernel`; returns its exit code."""
    return _tool().run(args)


def _tool() -> KernelTool:
    return KernelTool(
        name="get-uml-kernel",
        description="Fetch a newer User-Mode Linux of Debian (about 50 MB, 180 MB unpacked) from"
        " the mirror that apt is set up for, have apt verify it, and unpack it for this user"
        " alone: nothing is installed. Prints the kernel's path; `p2pcloop boot` takes it by"
        " itself (`--kernel system` takes the system's).",
        out="where it goes (default %(default)s; elsewhere, give the path that is printed to"
        " `p2pcloop boot --kernel` or P2PCLOOP_KERNEL)",
        suite="sid",
        link=unpacked_kernel(),
        find=find_kernel,
        fetch=_fetch,
        is_program=lambda path: path == _PROGRAM,
    )


def _fetch(suite: str, folder: Path) -> Kernel:
    find_program("patchelf", "patchelf")
    mirror = debian_mirror()
    _tool().say(f"fetching {', '.join(_PACKAGES)} of {suite} from {mirror.uri} (about 50 MB)")
    with packages(mirror, suite, _PACKAGES) as debs:
        version = debs[_PACKAGES[0]].name.split("_")[1]
        # The kernel will hold this path, so it is unpacked where it stays.
        with new_tree(folder, version) as root:
            for deb in debs.values():
                run_program("dpkg-deb", "--extract", deb, root)
            kernel = _use_own_libraries(root)
            _check(kernel, suite)
            return kernel


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
    run_program(
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


if __name__ == "__main__":
    sys.exit(main())
