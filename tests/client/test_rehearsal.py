"""Rehearsing a resume; the guest is played by a script."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from p2pcloop.client import rehearsal
from p2pcloop.errors import GuestError
from p2pcloop.store.home import Home

PROMPT = 'print("# ", end="", flush=True)'
GUEST = f"""
import os, signal, sys
ends = {{signal.SIGTERM, signal.SIGINT}}
signal.pthread_sigmask(signal.SIG_BLOCK, ends)
key = os.read(0, 100)
{PROMPT}
for _ in range(2):
    signal.sigwait(ends)
open(sys.argv[1], "w").write(f"{{key}} {{' '.join(sys.argv[2:])}}")
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the guest leaves what it was told, once it is ended."""
    monkeypatch.setattr(rehearsal, "_REST_SECONDS", 0.1)
    path = tmp_path / "told"
    played = [sys.executable, "-c", GUEST, str(path)]
    monkeypatch.setattr(rehearsal, "module_command", lambda _: played)
    return path


def test_a_key_is_pressed_and_the_guest_is_ended_once_it_rests(told: Path, tmp_path: Path) -> None:
    rehearsal.rehearse("@key/state", 3, Home(tmp_path))
    assert told.read_text() == f"b'\\rtrue\\r' resume @key/state --at 3 --home {tmp_path}"


def test_a_guest_that_says_nothing_is_ended_too(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_BEGIN_SECONDS", 0.3)
    monkeypatch.setattr(rehearsal, "_GONE_SECONDS", 0.1)
    silent = [sys.executable, "-c", GUEST.replace(PROMPT, ""), str(told)]
    monkeypatch.setattr(rehearsal, "module_command", lambda _: silent)
    rehearsal.rehearse("@key/state", 3, Home(tmp_path))


@pytest.mark.usefixtures("told")
def test_one_that_does_not_go_on_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('p2pcloop: no QEMU')"]
    monkeypatch.setattr(rehearsal, "module_command", lambda _: failing)
    with pytest.raises(GuestError, match="no QEMU"):
        rehearsal.rehearse("@key/state", 3, Home(tmp_path))
