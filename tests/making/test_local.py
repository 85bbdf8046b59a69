"""Image files that lie here: what they are, and indexes that are kept but never believed."""

import os
from pathlib import Path

import pytest

from p2pcloop.errors import (
    BusyError,
    CorruptError,
    FormatError,
    NotHereError,
    P2pcloopError,
    StorageError,
    UsageError,
)
from p2pcloop.formats.overlay import Overlay
from p2pcloop.image.device import ImageDevice
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import inspect_file, open_local, unchanged
from tests.support.images import ignore, make_image, padded, read_views, write_cloop_file

RAW = make_image(300_000, seed=2)


class Progress:
    """Whether an index was made: then progress was told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def __call__(self, done: int) -> None:
        self.told.append(done)


def read_all(file: ImageFile, cache: Path | None, progress: Progress | None = None) -> bytes:
    device = ImageDevice(open_local(file, cache, progress or ignore))
    try:
        return read_views(device, 0, [device.size])
    finally:
        device.close()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw.img"
    path.write_bytes(RAW)
    return path


def test_kinds_of_files(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloop = write_cloop_file(tmp_path / "a.cloop", RAW)
    Overlay.create(tmp_path / "o.delta", image_id=bytes(range(32)), image_size=8192).close()
    assert inspect_file(raw) == ImageFile(raw, "raw", len(RAW))
    assert inspect_file(cloop) == ImageFile(cloop, "cloop", cloop.stat().st_size)
    assert inspect_file(tmp_path / "o.delta").kind == "overlay"
    (tmp_path / "one").write_bytes(b"\0")
    assert inspect_file(tmp_path / "one") == ImageFile(tmp_path / "one", "raw", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("raw.img")
    assert inspect_file(Path("link")).path == raw


def test_a_cloop_with_its_header_at_the_end_is_no_raw_image(tmp_path: Path) -> None:
    """Else its compressed bytes would be served as a disk."""
    tail = b"#!/bin/sh\n#V4.0 Format\n".ljust(128, b"\0") + bytes(8)
    path = tmp_path / "v4.cloop"
    path.write_bytes(RAW[:10_000] + tail)
    with pytest.raises(FormatError, match="block size is 0"):
        inspect_file(path)


def test_what_is_no_image_file(tmp_path: Path) -> None:
    with pytest.raises(NotHereError, match="there is no file") as caught:
        inspect_file(tmp_path / "none")
    assert caught.value.exit_code == 7
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UsageError, match="is empty"):
        inspect_file(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"cannot be read|not a file"):
        inspect_file(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="not a file"):
        inspect_file(tmp_path / "fifo")  # opening it would wait for a writer for ever
    with pytest.raises(UsageError, match="not a file"):
        inspect_file(Path("/dev/zero"))
    with pytest.raises(P2pcloopError):
        inspect_file(tmp_path / ("x" * 300))


def test_an_overlay_is_no_image(tmp_path: Path) -> None:
    Overlay.create(tmp_path / "o", image_id=bytes(range(32)), image_size=8192).close()
    with pytest.raises(UsageError, match="is an overlay") as caught:
        open_local(inspect_file(tmp_path / "o"), None, ignore)
    hint = caught.value.hint or ""
    assert "`p2pcloop info`" in hint
    assert "boot, run, block and export" in hint  # `diff` and others have no --overlay


@pytest.mark.parametrize("block_size", [512, 66048])
def test_a_cloop_of_other_blocks_cannot_be_opened_as_it_lies(
    tmp_path: Path, block_size: int
) -> None:
    path = write_cloop_file(tmp_path / "a.cloop", RAW, block_size)
    with pytest.raises(UsageError, match=f"blocks of {block_size} bytes") as caught:
        open_local(inspect_file(path), None, ignore)
    assert caught.value.hint


def test_an_index_is_kept_and_used_again(tmp_path: Path, raw: Path) -> None:
    file, cache = inspect_file(raw), tmp_path / "cache"
    first, second = Progress(), Progress()
    assert read_all(file, cache, first) == read_all(file, cache, second) == padded(RAW)
    assert first.told
    assert second.told == []
    assert len(list(cache.iterdir())) == 1
    # The same content at another place is another file.
    other = raw.with_name("other.img")
    other.write_bytes(RAW)
    third = Progress()
    assert read_all(inspect_file(other), cache, third) == padded(RAW)
    assert third.told
    # Without a cache nothing is kept.
    fourth = Progress()
    assert read_all(file, None, fourth) == padded(RAW)
    assert fourth.told


def test_a_file_that_changed_is_read_anew(tmp_path: Path, raw: Path) -> None:
    cache = tmp_path / "cache"
    assert read_all(inspect_file(raw), cache) == padded(RAW)
    changed = RAW[::-1]
    raw.write_bytes(changed)
    os.utime(raw, ns=(1, 1))
    assert read_all(inspect_file(raw), cache) == padded(changed)


def test_a_file_that_is_written_while_it_is_read_is_read_anew_the_next_time(
    tmp_path: Path, raw: Path
) -> None:
    """The index must not be kept for what the file became."""
    cache, changed = tmp_path / "cache", RAW[::-1]

    def write(_done: int) -> None:
        raw.write_bytes(changed)
        os.utime(raw, ns=(1, 1))

    open_local(inspect_file(raw), cache, write).close()
    assert read_all(inspect_file(raw), cache) == padded(changed)


def test_a_file_that_changes_while_open_is_never_read_wrong(raw: Path) -> None:
    device = ImageDevice(open_local(inspect_file(raw), None, ignore))
    with raw.open("r+b") as file:
        file.seek(5000)
        file.write(b"something else")
    with pytest.raises(CorruptError, match="the file has changed"):
        read_views(device, 4096, [4096])
    device.close()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_kept_index_is_made_anew(tmp_path: Path, raw: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    read_all(inspect_file(raw), cache)
    (kept,) = cache.iterdir()
    data = bytearray(kept.read_bytes())
    if damage == "flip":
        data[100] ^= 1
    kept.write_bytes({"cut": bytes(data[:-1]), "flip": bytes(data), "empty": b""}[damage])
    progress = Progress()
    assert read_all(inspect_file(raw), cache, progress) == padded(RAW)
    assert progress.told
    again = Progress()
    read_all(inspect_file(raw), cache, again)
    assert again.told == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(StorageError, match="cache"):
        open_local(inspect_file(raw), tmp_path / "cache" / "deep", ignore)


def test_a_file_that_went_away_or_may_not_be_read(tmp_path: Path, raw: Path) -> None:
    file = inspect_file(raw)
    raw.unlink()
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(StorageError):
            open_local(file, cache, ignore)


def test_what_is_written_to_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Else an image would be published that there never was."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"\1" * 8192)
    os.utime(path, ns=(0, 0))
    file = inspect_file(path)
    with unchanged(file):
        assert path.read_bytes() == b"\1" * 8192
    with pytest.raises(BusyError, match="while it was read"), unchanged(file):
        path.write_bytes(b"b" * 8192)
    other = tmp_path / "other"
    other.write_bytes(b"c" * 8192)
    with pytest.raises(BusyError), unchanged(file):
        other.replace(path)
