"""The README's first command, as a user runs it, with the small image."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

CHECKOUT = Path(__file__).resolve().parent.parent.parent


def quickstart(work: Path) -> str:
    done = subprocess.run(
        [CHECKOUT / "tools/quickstart", "--tiny", "--work", work],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def running_with(path: Path) -> list[str]:
    """Command lines of processes that name a path."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(path) in text:
            found.append(text)
    return found


@pytest.mark.e2e
def test_quickstart_shows_what_it_promises_and_leaves_nothing_running(tmp_path: Path) -> None:
    for run in (1, 2):
        told = quickstart(tmp_path)
        assert told.count("guest# ") == 4, told
        assert "the file is still there" in told
        crossed = re.search(r"first boot, from an empty store: login prompt.*\n\s+(\S+ \S+)", told)
        assert crossed is not None, told
        assert not crossed[1].startswith("0 "), f"run {run}: nothing crossed"
        assert re.search(r"from http://127\.0\.0\.1:\d+", told)
        commands = re.findall(r"^  \.venv/bin/p2pcloop (\w+)", told, re.MULTILINE)
        assert commands == ["daemon", "boot", "info"]
        wait_until(lambda: not running_with(tmp_path), "a process of it does not end")
    assert len(list((tmp_path / "tiny-demo").glob("*.delta"))) == 1, "the overlay is used again"
