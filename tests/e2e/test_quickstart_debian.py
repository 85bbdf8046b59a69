"""The README's first command, word for word: a Debian with systemd, from one node to another."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

CHECKOUT = Path(__file__).resolve().parents[2]


def test_debian() -> None:
    # The image is built once, under build/; nodes and overlay are new, and gone afterwards.
    with tempfile.TemporaryDirectory(prefix="p2pq-") as work:
        done = subprocess.run(
            [CHECKOUT / "tools/quickstart", "--work", work],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    told = done.stdout
    assert done.returncode == 0, told + done.stderr
    assert "the file is still there" in told
    crossed = re.search(r"crossed, (\d+\.\d) % of the image", told)
    assert crossed is not None, told
    assert 0 < float(crossed[1]) < 40, "a boot reads but a part of the image"
