"""Progress of what another process writes."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from p2pcloop.client.growing import growth_bar
from tests.support.waiting import wait_until


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_file_that_grows_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    path = tmp_path / "file"
    with growth_bar("joining", path):
        path.write_bytes(b"x" * 200_000)
        wait_until(lambda: "kB" in terminal.getvalue())
    assert "joining" in terminal.getvalue()


def test_nothing_is_shown_where_it_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with growth_bar("joining", tmp_path, quiet=True):
        pass
    assert terminal.getvalue() == ""
