"""Descriptors of this process."""

from __future__ import annotations

from pathlib import Path


def open_descriptors() -> set[str]:
    """Their numbers. Some of those before may be closed at any time, with what an earlier test left
    to the garbage collector or to threads: so what is open at an end is compared by `<=`."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}
