"""Files that a command should not leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def nothing_left(folder: Path, *made: Path) -> Iterator[None]:
    """Check at the end that a folder has at most what was to be made there."""
    yield
    assert not folder.exists() or [path for path in folder.iterdir() if path not in made] == []
