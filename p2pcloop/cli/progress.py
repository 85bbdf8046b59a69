"""How long-running commands show how far they are: a bar on stderr, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def progress_bar(what: str, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Yield a function that is told `done` and, at the first call at least, `total` in bytes.

    Without a total it only counts. Nothing is shown when `quiet`, or where stderr is no terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total=0: None  # noqa: ARG005  nobody looks
        return
    with click.progressbar(length=0, label=what, file=sys.stderr, show_eta=True) as bar:

        def show(done: int, total: int = 0) -> None:
            bar.length = total or max(done, bar.length or 0)
            bar.update(done - bar.pos)

        yield show
