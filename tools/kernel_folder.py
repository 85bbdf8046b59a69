"""Kernels that are unpacked for this user alone, by tools/get-uml-kernel and get-stock-kernel.

Each of the two has a folder with a tree for each kernel, and a link to the newest.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from p2pcloop.errors import NeedsPackageError, P2pcloopError
from p2pcloop.store.folder_lock import locked_folder
from p2pcloopd.guest.system.kernel import Kernel
from tools.debian_suite import AptError

_TIMEOUT = 300.0


class KernelError(Exception):
    """The packages hold no usable kernel."""


@dataclass(frozen=True)
class KernelTool:
    """A command that fetches a kernel.

    Attributes:
        name: of the command, without its folder.
        description, out: for `--help`: what it does, and what the folder's path is followed by.
        suite: the Debian release that it takes from by itself.
        link: where the kernel is found unless another folder is given.
        find: the kernel at a path.
        fetch: have a suite's packages unpacked below a folder, in a tree of their own, and return
            the kernel in it, tried.
        is_program: whether a path below a tree is where such a kernel lies.
    """

    name: str
    description: str
    out: str
    suite: str
    link: Path
    find: Callable[[Path], Kernel]
    fetch: Callable[[str, Path], Kernel]
    is_program: Callable[[Path], bool]

    def say(self, text: str) -> None:
        """Tell the user."""
        print(f"{self.name}: {text}", file=sys.stderr)

    def run(self, args: Sequence[str] | None) -> int:
        """Run the command; returns its exit code."""
        options = self._parse(args)
        link: Path = options.out / self.link.name
        try:
            # The folder's parent is the default node's home, which others must not be able to
            # write.
            for directory in (options.out.parent, options.out):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked_folder(options.out):
                kernel = None if options.force else self._present(link)
                if kernel:
                    self.say(
                        f"kernel {kernel.release} is here already (--force fetches the newest)"
                    )
                else:
                    kernel = self._install(options.suite, link)
                    self.say(f"kernel {kernel.release} is here")
        except (AptError, KernelError, P2pcloopError, OSError) as err:
            self.say(f"{err}")
            if isinstance(err, P2pcloopError) and err.hint:
                self.say(f"hint: {err.hint}")
            return 1
        print(link)
        return 0

    def _parse(self, args: Sequence[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            prog=f"tools/{self.name}",
            description=self.description,
            epilog="Exit codes: 0 the kernel is there, 1 it is not, 2 the command line is wrong.",
        )
        parser.add_argument(
            "--suite",
            default=self.suite,
            help=f"the Debian release to take it from (default {self.suite})",
        )
        parser.add_argument(
            "--out", type=Path, default=self.link.parent, metavar="DIR", help=self.out
        )
        parser.add_argument("--force", action="store_true", help="fetch it even when one is there")
        options = parser.parse_args(args)
        if not re.fullmatch(r"[a-z][a-z0-9-]*", options.suite):
            parser.error("--suite takes a release's code name")
        options.out = options.out.absolute()
        return options

    def _present(self, link: Path) -> Kernel | None:
        """The kernel that is there; one that does not run (its folder was moved) is none."""
        with suppress(P2pcloopError):
            return self.find(link)
        return None

    def _install(self, suite: str, link: Path) -> Kernel:
        """Fetch, unpack and try a kernel; `link` leads to it once it is whole, and the old one
        goes."""
        if link.exists() and not link.is_symlink():
            raise KernelError(f"{link} was not made by this tool: choose another --out")
        kernel = self.fetch(suite, link.parent)
        self._lead_to(kernel.path, link)
        return kernel

    def _lead_to(self, program: Path, link: Path) -> None:
        """Make `link` lead to `program`, and delete its former target: that alone is known to be
        made by this tool. Guests that run it have it open."""
        before = link.readlink() if link.is_symlink() else None
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=link.parent)) / link.name
        new.symlink_to(program.relative_to(link.parent))
        new.replace(link)
        new.parent.rmdir()
        if before is not None and self.is_program(Path(*before.parts[1:])):
            shutil.rmtree(link.parent / before.parts[0], ignore_errors=True)


@contextmanager
def new_tree(folder: Path, name: str) -> Iterator[Path]:
    """A new directory in a folder, for a kernel; it goes if that fails."""
    root = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
    try:
        yield root
    except BaseException:
        shutil.rmtree(root)
        raise


def run_program(*argv: str | Path) -> str:
    """Run a program of Debian; its standard output.

    Raises:
        NeedsPackageError: it is not installed.
        KernelError: it failed.
    """
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT,
            check=False, env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        )  # fmt: skip
    except FileNotFoundError as err:
        raise NeedsPackageError(f"{argv[0]} is not installed") from err
    if done.returncode != 0:
        raise KernelError(f"{argv[0]} failed: {done.stderr.strip()}")
    return done.stdout
