"""P2PCLOOP_HOME: who may use it, and one writer at a time."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from p2pcloop.errors import BusyError, StorageError, UsageError
from p2pcloop.store.home import Home, replace_file

HOLD = """
import sys
from p2pcloop.store.home import Home
with Home.at(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_home_is_the_users_own(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "a" / "b")
    home.create()
    assert mode(home.root) == mode(home.keys) == mode(home.tmp) == 0o700
    home.create()


def test_the_default_home_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Home.at(None).root == tmp_path / "p2pcloop"


def test_a_home_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Home.at("node").root == tmp_path / "node"


def test_a_file_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a directory"):
        Home.at(tmp_path / "file").create()


def test_a_home_that_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(UsageError, match="other users"):
        Home.at(tmp_path).create()


def test_a_home_may_lie_as_deep_as_a_path_goes(tmp_path: Path) -> None:
    home = Home.at(tmp_path / ("x" * 100) / ("y" * 200))
    home.create()
    assert home.tmp.is_dir()


def test_one_process_holds_the_lock_until_it_is_killed(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    assert home.holder() is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"locked\n"
            assert home.holder() == other.pid
            with pytest.raises(BusyError, match=str(other.pid)):
                with home.locked():
                    pass
        finally:
            other.send_signal(signal.SIGKILL)
        other.wait()
    assert home.holder() is None
    with home.locked():
        assert home.holder() == os.getpid()
    assert home.holder() is None


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "names"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_replacement_that_fails_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "names"
    replace_file(path, b"one")
    (tmp_path / "names.new").mkdir()  # what open() for writing refuses, for root too
    with pytest.raises(StorageError):
        replace_file(path, b"two")
    assert path.read_bytes() == b"one"


def test_what_a_killed_process_staged_goes_with_the_next_one(tmp_path: Path) -> None:
    home = Home.at(str(tmp_path / "home"))
    home.create()
    left = home.tmp / "seed-left"
    left.mkdir()
    (left / "image").write_bytes(b"x")
    with home.staging() as held, home.staging() as other:
        assert sorted(home.tmp.iterdir()) == sorted([held, other])


def test_a_pipe_in_the_place_of_the_lock(tmp_path: Path) -> None:
    home = Home.at(str(tmp_path / "home"))
    home.create()
    os.mkfifo(home.lock_path)
    with pytest.raises(UsageError, match="lock is not a file"), home.locked():
        pass
