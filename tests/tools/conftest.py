"""Keys for archives of packages."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.archive import Key


def _throwaway_key() -> Iterator[Key]:
    # pytest's own directories are too deep for the socket of gpg's agent.
    with tempfile.TemporaryDirectory(prefix="gpg-") as directory:
        key = Key(Path(directory) / "home")
        try:
            yield key
        finally:
            key.end()


@pytest.fixture(scope="session")
def signing_key() -> Iterator[Key]:
    yield from _throwaway_key()


@pytest.fixture(scope="session")
def other_key() -> Iterator[Key]:
    yield from _throwaway_key()
