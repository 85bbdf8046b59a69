"""Sockets whose paths are long, and folders that are short enough for programs of others."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from p2pcloop.store.socket_path import SOCKET_PATH_LIMIT, socket_address, socket_folder


def test_a_short_path_is_its_own_address() -> None:
    path = Path("/run/s")
    with socket_address(path) as address:
        assert address == "/run/s"


def test_a_long_path_is_reached_by_its_directory(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    with socket_address(folder / "s") as address:
        assert len(address) <= SOCKET_PATH_LIMIT
        assert Path(address).parent.samefile(folder)
    assert not Path(address).parent.exists()


def test_temporary_sockets_go_where_paths_are_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 160)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    assert socket_folder() == "/var/tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run")
    assert socket_folder() in ("/run", "/tmp")  # an ordinary user may not write in /run
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    assert socket_folder() == "/tmp"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert socket_folder() == "/tmp"
