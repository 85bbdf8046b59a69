"""Progress of what another process writes: how much a file has grown."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pcloop.client.terminal import REDRAW_SECONDS, progress_bar

_SECTOR = 512
"""Bytes of st_blocks (stat(2))."""


@contextmanager
def growth_bar(what: str, path: Path, *, quiet: bool = False) -> Iterator[None]:
    """Show, while the block runs, how many bytes of a file are on the disk; it may not exist yet.

    Nothing is shown if `quiet`, or if stderr is no terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    with progress_bar(what) as show:

        def look() -> None:
            while not ended.wait(REDRAW_SECONDS):
                with suppress(OSError):  # it is not there yet, or no more
                    show(path.stat().st_blocks * _SECTOR)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
