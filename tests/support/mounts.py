"""Mounts of p2pcloop in tests, which leave none behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.programs import Node, read_until

needs_fuse = pytest.mark.skipif(
    not Path("/dev/fuse").exists(), reason="this system has no /dev/fuse"
)


@contextmanager
def mounted(
    node: Node, directory: Path, *options: str, said: str = "mounted at"
) -> Iterator[subprocess.Popen[str]]:
    """A running `p2pcloop mount`; enter once it has `said` that it is mounted."""
    with suppress(FileExistsError):  # with a dead mount on it, it does not seem to be a directory
        directory.mkdir()
    with node.started("mount", directory, *options) as process:
        try:
            read_until(process, said)
            yield process
        finally:
            unmount(directory)


def unmount(directory: Path) -> None:
    """Unmount what is at a directory, if something is."""
    subprocess.run(["fusermount3", "-u", "-z", directory], capture_output=True, check=False)


def is_mounted(directory: Path) -> bool:
    """Whether a file system is mounted there, alive or not."""
    path = os.path.realpath(directory)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == path for line in lines)


def names(directory: Path) -> list[str]:
    """The names in a directory, in order."""
    return sorted(path.name for path in directory.iterdir())
