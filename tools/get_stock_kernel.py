"""Unpacks Debian's stock kernel with its modules for this user alone; `p2pcloop netboot` and guests
in QEMU take it.

To install it would make an initramfs and set up a boot loader on this machine, which needs neither.
Run through `tools/get-stock-kernel`.
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

from p2pcloop.errors import P2pcloopError
from p2pcloopd.guest.system.kernel import Kernel, load_modules
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel, unpacked_stock_kernel
from p2pcloopd.programs import find_program
from tools.debian_suite import AptError, debian_mirror, packages

_SUITE = "bookworm"
_META = "linux-image-amd64"
_NEEDED = ("nbd", "overlay", "virtio_blk")
_TIMEOUT = 300.0


class KernelError(Exception):
    """The packages hold no usable kernel."""


def main(args: Sequence[str] | None = None) -> int:
    """The command `tools/get-stock-kernel`; returns its exit code."""
    options = _parse(args)
    link: Path = options.out / unpacked_stock_kernel().name
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
    with suppress(P2pcloopError):
        return find_stock_kernel(link)
    return None


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/get-stock-kernel",
        description="Fetch Debian's stock kernel for PCs (about 70 MB, 430 MB unpacked) from the"
        " mirror that apt is set up for, have apt verify it, and unpack it for this user alone:"
        " nothing is installed. Prints the kernel's path; `p2pcloop netboot` and `p2pcloop boot"
        " --vm qemu` take it by themselves.",
        epilog="Exit codes: 0 the kernel is there, 1 it is not, 2 the command line is wrong.",
    )
    parser.add_argument(
        "--suite", default=_SUITE, help=f"the Debian release to take it from (default {_SUITE})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=unpacked_stock_kernel().parent,
        metavar="DIR",
        help="where it goes (default %(default)s; elsewhere, give the path that is printed to"
        " `--kernel` or P2PCLOOP_STOCK_KERNEL)",
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
    """Fetch and unpack a kernel; `link` leads to it once it is whole, and the old one goes."""
    if link.exists() and not link.is_symlink():
        raise KernelError(f"{link} was not made by this tool: choose another --out")
    find_program("depmod", "kmod")
    mirror = debian_mirror()
    _say(f"fetching {_META} of {suite} from {mirror.uri} (about 70 MB)")
    with packages(mirror, suite, [_META]) as debs:
        fields = _run("dpkg-deb", "--field", debs[_META], "Depends")
    found = re.search(r"linux-image-\S+", fields)
    if found is None:
        raise KernelError(f"{_META} names no kernel: {fields.strip()}")
    with packages(mirror, suite, [found[0]]) as debs:
        root = Path(tempfile.mkdtemp(prefix=f"{found[0]}-", dir=link.parent))
        try:
            _run("dpkg-deb", "--extract", debs[found[0]], root)
            kernel = _check(root)
        except BaseException:
            shutil.rmtree(root)
            raise
    _lead_to(kernel.path, link)
    return find_stock_kernel(link)


def _check(root: Path) -> Kernel:
    """Have the modules listed, and check that those of a first root are there."""
    program = next((root / "boot").glob("vmlinuz-*"), None)
    if program is None:
        raise KernelError("the package has no kernel where Debian has it")
    _run("depmod", "--basedir", root, program.name.removeprefix("vmlinuz-"))
    kernel = find_stock_kernel(program)
    load_modules(kernel, _NEEDED)
    return kernel


def _lead_to(program: Path, link: Path) -> None:
    """Make `link` lead to `program`, and delete the tree of its former target."""
    before = link.readlink() if link.is_symlink() else None
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=link.parent)) / link.name
    new.symlink_to(program.relative_to(link.parent))
    new.replace(link)
    new.parent.rmdir()
    if before is not None and len(before.parts) == 3 and before.parts[1] == "boot":
        shutil.rmtree(link.parent / before.parts[0], ignore_errors=True)


def _run(*argv: str | Path) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT,
        check=False, env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )  # fmt: skip
    if done.returncode != 0:
        raise KernelError(f"{argv[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _say(text: str) -> None:
    print(f"get-stock-kernel: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
