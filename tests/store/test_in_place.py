"""Files that are served where they lie: how they are opened, and known again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from p2pcloop.errors import MismatchError, StorageError
from p2pcloop.store import in_place
from p2pcloop.store.in_place import (
    STAMPS,
    HeldFile,
    Stamp,
    hold_served,
    load_stamps,
    save_stamps,
)


@pytest.fixture(params=["openat2", "an older kernel"])
def _opening(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "an older kernel":
        monkeypatch.setattr(in_place, "_open_plainly", in_place._walk)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path.resolve()


def read(held: HeldFile) -> bytes:
    return os.pread(held.fd, 100, 0)


@pytest.mark.usefixtures("_opening")
def test_a_file_stays_the_one_that_was_opened(directory: Path) -> None:
    path = directory / "image"
    path.write_bytes(b"image")
    held = HeldFile(path)
    before = held.stamp()
    (directory / "secret").write_bytes(b"secret")
    (directory / "secret").replace(path)
    assert read(held) == b"image"
    assert Path(held.link).read_bytes() == b"image"
    assert held.stamp() != before, "its last name is gone"


@pytest.mark.usefixtures("_opening")
@pytest.mark.parametrize("part", ["file", "directory", "both"])
def test_no_part_of_a_path_is_a_link(directory: Path, part: str) -> None:
    (directory / "real").mkdir()
    (directory / "real" / "image").write_bytes(b"image")
    (directory / "real" / "link").symlink_to("image")
    (directory / "linked").symlink_to("real")
    path = {"file": "real/link", "directory": "linked/image", "both": "linked/link"}[part]
    with pytest.raises(StorageError) as error:
        HeldFile(directory / path)
    assert error.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert read(HeldFile(directory / "real" / "image")) == b"image"


@pytest.mark.usefixtures("_opening")
def test_only_regular_files_are_opened(directory: Path) -> None:
    os.mkfifo(directory / "fifo")
    for path in (directory / "fifo", directory, Path("/dev/null")):
        with pytest.raises(StorageError, match="not a regular file"):
            HeldFile(path)
    with pytest.raises(StorageError, match="No such file"):
        HeldFile(directory / "none")


def test_a_file_is_closed_when_nobody_holds_it(directory: Path) -> None:
    (directory / "image").write_bytes(b"image")
    held = HeldFile(directory / "image")
    link = held.link
    assert os.path.lexists(link)
    del held
    assert not os.path.lexists(link)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"other"),
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: path.chmod(0o600),
        lambda path: path.with_name("name").hardlink_to(path),
        lambda path: os.truncate(path, 3),
    ],
)
def test_what_was_touched_has_another_stamp(
    directory: Path, change: Callable[[Path], object]
) -> None:
    path = directory / "image"
    path.write_bytes(b"image")
    os.utime(path, ns=(5, 5))
    held = HeldFile(path)
    before = held.stamp()
    assert held.stamp() == before
    change(path)
    assert held.stamp() != before


def test_stamps_are_kept(directory: Path) -> None:
    stamps = {"image/pack": Stamp(1, 2, 3, 4, 5)}
    assert load_stamps(directory) == {}
    save_stamps(directory, stamps)
    assert load_stamps(directory) == stamps
    golden = {"format": 1, "files": {"image/pack": [1, 2, 3, 4, 5]}}
    assert msgpack.unpackb((directory / STAMPS).read_bytes()) == golden


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb({"format": 2, "files": {}}),
        msgpack.packb({"format": 1, "files": {"a": [1, 2]}}),
        msgpack.packb({"format": 1, "files": {"a": None}}),
        msgpack.packb([1]),
    ],
)
def test_damaged_stamps_say_nothing(directory: Path, data: bytes) -> None:
    (directory / STAMPS).write_bytes(data)
    assert load_stamps(directory) == {}


def test_only_what_was_compared_is_passed_on(directory: Path) -> None:
    torrent = directory / "torrent"
    (torrent / "data" / "image").mkdir(parents=True)
    (torrent / "data" / "image" / "index").write_bytes(b"index")
    pack = directory / "pack"
    pack.write_bytes(b"pack")
    (torrent / "data" / "image" / "pack").symlink_to(pack)
    assert read(hold_served(torrent, "image/index")) == b"index"
    with pytest.raises(MismatchError, match="not what was seeded"):
        hold_served(torrent, "image/pack")
    save_stamps(torrent, {"image/pack": HeldFile(pack).stamp()})
    assert read(hold_served(torrent, "image/pack")) == b"pack"
    (directory / "secret").write_bytes(b"key!")
    (directory / "secret").replace(pack)
    with pytest.raises(MismatchError, match="not what was seeded"):
        hold_served(torrent, "image/pack")
