"""Folders of guests go, also those of killed processes, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.store.temporary_folder import temporary_folder

KEEPS_ONE = """
import os
from p2pcloop.store.temporary_folder import temporary_folder
with temporary_folder() as folder:
    (folder / "socket").touch()
    if "forks" in os.environ and not os.fork():
        os.close(1)
        os.read(0, 1)
        os._exit(0)
    os.write(1, bytes(folder) + b"\\n")
    os.read(0, 1)
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as made:
        monkeypatch.setenv("TMPDIR", made)
        monkeypatch.setattr(tempfile, "tempdir", made)
        yield Path(made)


def started(**environment: str) -> tuple[subprocess.Popen[bytes], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPS_ONE],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | environment,
    )  # fmt: skip
    assert process.stdout is not None
    return process, Path(os.fsdecode(process.stdout.readline().strip()))


def test_it_goes_at_the_end(place: Path) -> None:
    with temporary_folder() as folder:
        assert folder.parent == place
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "socket").touch()
    assert list(place.iterdir()) == []


def test_a_second_one_is_in_the_first(place: Path) -> None:
    with temporary_folder() as first:
        with temporary_folder() as second:
            assert second.parent == first
            assert second.stat().st_mode & 0o777 == 0o700
            (second / "socket").touch()
        assert list(first.iterdir()) == []
    with temporary_folder() as later:
        assert later.parent == place


def test_that_of_a_killed_process_goes_with_the_next(place: Path) -> None:
    killed, of_killed = started()
    alive, of_alive = started()
    with killed, alive:
        killed.kill()
        killed.wait()
        assert (of_killed / "socket").exists()
        with temporary_folder():
            pass
        assert list(place.iterdir()) == [of_alive]
        alive.communicate(b"x")
    assert list(place.iterdir()) == []


@pytest.mark.usefixtures("place")
def test_one_that_a_forked_process_uses_stays() -> None:
    killed, folder = started(forks="1")
    with killed:
        killed.kill()
        killed.wait()
        with temporary_folder():
            pass
        assert (folder / "socket").exists()
        assert killed.stdin is not None
        killed.stdin.write(b"x")


def test_what_is_no_such_folder_stays(place: Path) -> None:
    other = place / "elsewhere"
    other.mkdir()
    (place / "p2pcloop-guest-link").symlink_to(other)
    (place / "p2pcloop-guest-file").touch()
    (place / "p2pcloop-kept").mkdir()
    before = sorted(place.iterdir())
    with temporary_folder():
        pass
    assert sorted(place.iterdir()) == before
