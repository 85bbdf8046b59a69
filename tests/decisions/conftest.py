"""What tests of the fetch scheduler's decisions start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.decisions.sim import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Simulated time, and a disk. It is the test's clock, too."""
    return World(tmp_path)
