"""Writing a mirror: a file is there whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from unittest.mock import patch

import pytest

from p2pcloop.errors import MismatchError, StorageError, UsageError
from p2pcloop.formats.mirror import LayerFilePath
from p2pcloop.formats.name import parse_name
from p2pcloop.store.have import HaveFile, is_whole
from p2pcloop.store.in_place import HeldFile
from p2pcloop.store.mirror import open_mirror_directory

PATH = LayerFilePath("0" * 32, "pack")


def ignore(_done: int) -> None:
    """Progress that is not looked at."""


LEFT = ".p2pcloop-new-0123456789abcdef"


def test_what_lost_a_part_while_it_was_copied_is_not_put_there(tmp_path: Path) -> None:
    source, root = tmp_path / "pack", tmp_path / "mirror"
    source.write_bytes(b"x" * 100_000)
    held = HeldFile(source.resolve())
    have = HaveFile.create(tmp_path / "have", bytes(20), 7, complete=True)

    def evicted_meanwhile() -> bool:
        have.drop(3)
        return is_whole(tmp_path / "have")

    def written_meanwhile() -> bool:
        source.write_bytes(b"y" * 100_000)
        return True

    with open_mirror_directory(root) as mirror:
        with pytest.raises(MismatchError, match="went away"):
            mirror.copy(PATH, held, 100_000, evicted_meanwhile, ignore)
        with pytest.raises(MismatchError, match="changed"):
            mirror.copy(PATH, held, 100_000, written_meanwhile, ignore)
        assert not [path for path in root.rglob("*") if path.is_file()]
        have.add([3])
        mirror.copy(PATH, held, 100_000, lambda: is_whole(tmp_path / "have"), ignore)
        with pytest.raises(MismatchError, match="does not have"):
            mirror.copy(PATH, held, 99_999, lambda: True, ignore)
    have.close()
    assert (root / str(PATH)).read_bytes() == source.read_bytes()
    assert not is_whole(tmp_path / "nothing")


def test_only_what_a_killed_process_of_ours_left_is_deleted(tmp_path: Path) -> None:
    ours = [
        tmp_path / LEFT,
        tmp_path / "manifests" / LEFT,
        tmp_path / "torrents" / LEFT,
        tmp_path / f"@{'a' * 52}" / LEFT,
        tmp_path / "data" / ("0" * 32) / LEFT,
    ]
    others = [
        tmp_path / ".new-report",
        tmp_path / ".p2pcloop-new-notes",
        tmp_path / "manifests" / ".new-01234567",
        tmp_path / "elsewhere" / LEFT,
        tmp_path / "data" / "a" / "b" / LEFT,
        tmp_path / "torrents" / (LEFT[:-1] + "0"),
    ]
    for path in (*ours, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "manifests" / (LEFT[:-1] + "1")).symlink_to(tmp_path / ".new-report")
    (tmp_path / "manifests" / (LEFT[:-1] + "2")).mkdir()
    os.mkfifo(tmp_path / "manifests" / (LEFT[:-1] + "3"))
    with open(others[-1], "rb") as being_written:
        fcntl.flock(being_written, fcntl.LOCK_EX)
        with open_mirror_directory(tmp_path):
            pass
    assert [path for path in ours if path.exists()] == []
    assert all(path.exists() for path in others)
    assert len(list((tmp_path / "manifests").iterdir())) == 4


def test_a_pipe_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    """To open it would wait for ever."""
    os.mkfifo(tmp_path / "link.txt")
    with open_mirror_directory(tmp_path) as mirror:
        with pytest.raises(UsageError, match=r"link\.txt is a pipe") as caught:
            mirror.urls(parse_name(f"@{'a' * 52}/x"))
    assert caught.value.hint


def test_a_file_of_the_user_in_the_place_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "link.txt").write_text("my own notes\n")
    with open_mirror_directory(tmp_path) as mirror:
        with pytest.raises(UsageError, match=r"link\.txt holds a line that is no link") as caught:
            mirror.urls(parse_name(f"@{'a' * 52}/x"))
    assert caught.value.hint
    assert (tmp_path / "link.txt").read_text() == "my own notes\n"


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifests").symlink_to("/nonexistent/a")
    with (
        open_mirror_directory(tmp_path) as mirror,
        pytest.raises(StorageError, match="Not a directory"),
    ):
        mirror.write("manifests/x", b"x")


def test_a_place_that_takes_no_files_is_known_at_once(tmp_path: Path) -> None:
    with open_mirror_directory(tmp_path) as mirror:
        mirror.try_to_write()
        assert not list(tmp_path.iterdir())
        with (
            patch("os.open", side_effect=OSError(errno.EROFS, "Read-only file system")),
            pytest.raises(StorageError, match=r"cannot write into .*Read-only"),
        ):
            mirror.try_to_write()
