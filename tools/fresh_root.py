"""A fresh root of a Debian release, and programs in it, as in a machine that was just installed.

The programs run in mount, process and host name namespaces of their own, with this machine's
network. A plain chroot would not do: the kernel gives no user namespace inside one, which a guest's
sandbox needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_TIMEOUT = 900.0
USER = "alice"
"""An ordinary user of the machine."""

_ENVIRONMENT = ("PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG=C.UTF-8", "TERM=xterm")


_BEGIN = """
PATH=/usr/sbin:/usr/bin:/sbin:/bin
hostname fresh
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir .before
pivot_root . .before
umount -l .before
rmdir .before
echo ready
exec sleep infinity
"""
"""What the first process does. /proc must have nothing mounted on it, as bubblewrap does to protect
it: the kernel then gives no /proc to user namespaces inside, and so to no guest's sandbox."""


class RootError(Exception):
    """A program in the root failed; the message has what it said."""


def make_root(release: str, packages: Sequence[str], kept: Path) -> None:
    """Have mmdebstrap make a root of a release as a tar file, once: a later call finds it.

    Raises:
        RootError: mmdebstrap fails.
    """
    if kept.exists():
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    made = kept.with_suffix(".new.tar")
    include = [f"--include={','.join(packages)}"] if packages else []
    words = ["mmdebstrap", "--variant=minbase", *include, release, str(made)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode != 0:
        raise RootError(f"mmdebstrap failed: {done.stderr[-2000:]}")
    made.rename(kept)


class Machine:
    """A root that is used as a machine, until the context is left.

    Attributes:
        root: its folder; it is deleted at the end.
    """

    def __init__(self, archive: Path, root: Path) -> None:
        """Unpack `archive` at `root`, and start the first process."""
        self.root = root
        root.mkdir(parents=True)
        subprocess.run(["tar", "-xf", archive, "-C", root], check=True, timeout=_TIMEOUT)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (root / "usr/sbin/policy-rc.d").chmod(0o755)
        (root / "etc/dpkg/dpkg.cfg.d/fresh").write_text(
            "force-unsafe-io\n"
        )  # it is no disk to keep
        self._process, self._pid = self._start()
        self.run("useradd", "--create-home", USER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()  # with it goes every process of its process namespace
        self._process.wait()
        shutil.rmtree(self.root)

    def _start(self) -> tuple[subprocess.Popen[str], int]:
        """Start the first process; return the one that it ends with, and its process id."""
        words = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        process = subprocess.Popen(
            [*words, "sh", "-ec", _BEGIN, "sh", str(self.root)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RootError(f"{self.root} cannot be used as a root: {process.wait()}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return process, int(children)

    def words(self, *command: str, user: str = "root") -> list[str]:
        """The words that run a command in the machine, in the user's home."""
        home = "/root" if user == "root" else f"/home/{user}"
        enter = ["nsenter", "--target", str(self._pid), "--mount", "--uts", "--pid", "--root"]
        enter += ["--wd=/", "setpriv", "--reuid", user, "--regid", user, "--init-groups"]
        clean = ["env", "--ignore-environment", f"--chdir={home}", f"HOME={home}", f"USER={user}"]
        return [*enter, *clean, *_ENVIRONMENT, *command]

    def run(self, *command: str, user: str = "root", code: int = 0) -> str:
        """Run a command to its end; return its standard output.

        Raises:
            RootError: its exit code is another one than `code`.
        """
        done = subprocess.run(
            self.words(*command, user=user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        if done.returncode != code:
            said = f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
            raise RootError(f"`{' '.join(command)}` ended with {done.returncode}:\n{said}")
        return done.stdout

    def put(self, source: Path, path: str) -> None:
        """Copy a file into the machine, for its user."""
        target = self.root / path.lstrip("/")
        shutil.copy(source, target)
        target.chmod(0o644)

    def files(self) -> set[str]:
        """All paths of the root."""
        found = set()
        for folder, folders, names in os.walk(self.root):
            inner = Path(folder).relative_to(self.root)
            found |= {f"/{inner / name}" for name in (*folders, *names)}
        return found
