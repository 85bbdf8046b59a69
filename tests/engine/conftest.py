"""What tests of the engine start from."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.engines import Nodes


@pytest.fixture
def content() -> bytes:
    """Bytes of 123 pieces, the last one short."""
    return random.Random(7).randbytes(2_000_003)


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    """Nodes below the test's directory."""
    return Nodes(tmp_path)
