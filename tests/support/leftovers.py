"""Files that a command should not leave behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pcloop.store.home import Home
from tests.support.waiting import wait_until


@contextmanager
def nothing_left(folder: Path, *made: Path) -> Iterator[None]:
    """Check at the end that a folder has at most what was to be made there."""
    yield
    assert not folder.exists() or [path for path in folder.iterdir() if path not in made] == []


def wait_staged(home: Home, name: str, process: subprocess.Popen[str]) -> None:
    """Wait until a command works with a file in a staging directory, or has ended.

    Args:
        name: of the file, a pattern.
    """

    def is_staged() -> bool:
        with suppress(FileNotFoundError):  # a directory that goes meanwhile
            return any(home.tmp.glob(f"*/{name}"))
        return False

    wait_until(lambda: is_staged() or process.poll() is not None)


def wait_cleared(home: Home) -> None:
    """Wait until a p2pcloopd that starts would leave nothing in `tmp`: what a killed process has
    begun may still end."""

    def is_cleared() -> bool:
        home.clear_staging()
        return not any(home.tmp.iterdir())

    wait_until(is_cleared)
