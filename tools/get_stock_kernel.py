"""Unpacks Debian's stock kernel with its modules for this user alone; `p2pcloop netboot` and guests
in QEMU take it.

To install it would make an initramfs and set up a boot loader on this machine, which needs neither.
Run through `tools/get-stock-kernel`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from p2pcloopd.guest.system.kernel import Kernel, load_modules
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel, unpacked_stock_kernel
from p2pcloopd.programs import find_program
from tools.debian_suite import debian_mirror, packages
from tools.kernel_folder import KernelError, KernelTool, new_tree, run_program

_META = "linux-image-amd64"
_NEEDED = ("nbd", "overlay", "virtio_blk")


def main(args: Sequence[str] | None = None) -> int:
    """The command `tools/get-stock-kernel`; returns its exit code."""
    return _tool().run(args)


def _tool() -> KernelTool:
    return KernelTool(
        name="get-stock-kernel",
        description="Fetch Debian's stock kernel for PCs (about 70 MB, 430 MB unpacked) from the"
        " mirror that apt is set up for, have apt verify it, and unpack it for this user alone:"
        " nothing is installed. Prints the kernel's path; `p2pcloop netboot` and `p2pcloop boot"
        " --vm qemu` take it by themselves.",
        out="where it goes (default %(default)s; elsewhere, give the path that is printed to"
        " `--kernel` or P2PCLOOP_STOCK_KERNEL)",
        suite="bookworm",
        link=unpacked_stock_kernel(),
        find=find_stock_kernel,
        fetch=_fetch,
        is_program=lambda path: len(path.parts) == 2 and path.parts[0] == "boot",
    )


def _fetch(suite: str, folder: Path) -> Kernel:
    find_program("depmod", "kmod")
    mirror = debian_mirror()
    _tool().say(f"fetching {_META} of {suite} from {mirror.uri} (about 70 MB)")
    with packages(mirror, suite, [_META]) as debs:
        fields = run_program("dpkg-deb", "--field", debs[_META], "Depends")
    found = re.search(r"linux-image-\S+", fields)
    if found is None:
        raise KernelError(f"{_META} names no kernel: {fields.strip()}")
    with packages(mirror, suite, [found[0]]) as debs, new_tree(folder, found[0]) as root:
        run_program("dpkg-deb", "--extract", debs[found[0]], root)
        return _check(root)


def _check(root: Path) -> Kernel:
    """Have the modules listed, and check that those of a first root are there."""
    program = next((root / "boot").glob("vmlinuz-*"), None)
    if program is None:
        raise KernelError("the package has no kernel where Debian has it")
    run_program("depmod", "--basedir", root, program.name.removeprefix("vmlinuz-"))
    kernel = find_stock_kernel(program)
    load_modules(kernel, _NEEDED)
    return kernel


if __name__ == "__main__":
    sys.exit(main())
