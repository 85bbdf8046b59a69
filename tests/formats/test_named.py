"""Locks on files that lose their names between open(2) and flock(2): the kind of race that leaves
two holders of one name, or a holder of a file that is gone."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from p2pcloop.errors import NotHereError, StorageError
from p2pcloop.formats.named import open_named
from p2pcloop.formats.overlay import Overlay
from p2pcloop.formats.overlay_copy import copy_overlay, replace_overlay
from p2pcloop.store.home import Home, replace_file
from p2pcloop.store.mirror import open_mirror_directory
from p2pcloop.units import BLOCK_SIZE
from tests.support.descriptors import open_descriptors

IMAGE, OTHER = b"i" * 32, b"o" * 32

Meanwhile = Callable[[Callable[[], None]], None]


@pytest.fixture
def before_lock(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Has something happen between the next open and its lock."""
    flock = fcntl.flock
    waiting: list[Callable[[], None]] = []

    def late(fd: int, how: int) -> None:
        if waiting:
            waiting.pop()()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    return waiting.append


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    path = tmp_path / "mine.delta"
    Overlay.create(path, image_id=IMAGE, image_size=8 * BLOCK_SIZE).close()
    return path


@pytest.mark.parametrize("read_only", [False, True])
def test_an_overlay_that_was_replaced_before_it_was_locked(
    overlay: Path, before_lock: Meanwhile, read_only: bool
) -> None:
    copy = copy_overlay(overlay, image_id=OTHER, manifest_id=None, name="")
    before_lock(lambda: replace_overlay(copy, overlay))
    with Overlay.open(overlay, image_id=OTHER, read_only=read_only) as opened:
        assert opened.info().image_id == OTHER  # not the file that no name finds any more


def test_what_is_flushed_is_in_the_file_that_has_the_name(
    overlay: Path, before_lock: Meanwhile
) -> None:
    copy = copy_overlay(overlay, image_id=IMAGE, manifest_id=None, name="")
    before_lock(lambda: replace_overlay(copy, overlay))
    with Overlay.open(overlay, image_id=IMAGE) as opened:
        opened.write(0, [memoryview(b"x" * BLOCK_SIZE)])
        opened.prepare_flush()()
    assert Overlay.inspect(overlay).data_blocks == 1


def test_an_overlay_that_was_deleted_before_it_was_locked(
    overlay: Path, before_lock: Meanwhile
) -> None:
    before_lock(overlay.unlink)
    with pytest.raises(NotHereError):
        Overlay.open(overlay, image_id=IMAGE)


def test_a_homes_lock_that_was_deleted_before_it_was_taken(
    tmp_path: Path, before_lock: Meanwhile
) -> None:
    home = Home.at(tmp_path)
    home.lock_path.touch()
    before_lock(home.lock_path.unlink)
    with home.locked():
        assert home.holder() == os.getpid()  # seen by who opens the name


def test_a_staging_directory_that_was_cleared_before_it_was_locked(
    tmp_path: Path, before_lock: Meanwhile
) -> None:
    home = Home.at(tmp_path)
    home.create()
    before_lock(home.clear_staging)
    with home.staging() as staging:
        assert staging.is_dir()
        home.clear_staging()
        assert staging.is_dir()
    assert not list(home.tmp.iterdir())


def test_a_mirror_that_was_moved_away_before_it_was_locked(
    tmp_path: Path, before_lock: Meanwhile
) -> None:
    root = tmp_path / "mirror"
    root.mkdir()

    def move() -> None:
        root.rename(tmp_path / "old")

    before_lock(move)
    with open_mirror_directory(root) as mirror:
        mirror.write("file", b"of the mirror")
    assert (root / "file").read_bytes() == b"of the mirror"
    assert not list((tmp_path / "old").iterdir())


def test_a_file_system_whose_inode_numbers_say_nothing_is_no_endless_loop(
    overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "samestat", lambda _one, _other: False)
    descriptors = open_descriptors()
    with pytest.raises(OSError, match="Stale"):
        open_named(lambda: os.open(overlay, os.O_RDONLY), lambda _fd: None, overlay)
    with pytest.raises(StorageError, match="Stale"):
        Overlay.open(overlay, image_id=IMAGE)
    assert open_descriptors() <= descriptors


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_syncs_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As shared folders of some virtual machines; the files are synced."""
    fsync = os.fsync

    def refuse(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", refuse)
    with nullcontext() if number == errno.EINVAL else pytest.raises(StorageError):
        replace_file(tmp_path / "names", b"new")
        Overlay.create(tmp_path / "mine.delta", image_id=IMAGE, image_size=8 * BLOCK_SIZE).close()
        assert (tmp_path / "names").read_bytes() == b"new"
