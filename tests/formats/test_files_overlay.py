"""Overlays that are a device of their own: how one is made, told, refused, and moved."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from p2pcloop.errors import MismatchError, StorageError
from p2pcloop.formats.overlay import Overlay, State
from p2pcloop.formats.overlay_copy import copy_overlay, replace_overlay
from p2pcloop.formats.overlay_header import Header
from p2pcloop.image.zeros import files_device
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.block.files_overlay import make_file_system
from tests.support.images import read_views
from tests.support.waiting import BOUND

IMAGE, OTHER, MANIFEST = bytes(range(32)), b"o" * 32, b"m" * 32
SIZE = 64 << 20


def fill(overlay: Overlay) -> None:
    overlay.write(8192, [memoryview(b"f" * BLOCK_SIZE)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.delta"
    Overlay.create(path, image_id=IMAGE, image_size=SIZE, fill=fill).close()
    return path


def test_what_it_is_made_with_is_there(path: Path) -> None:
    with Overlay.open(path, image_id=IMAGE, mode="files") as overlay:
        assert overlay.info().mode == "files"
        assert overlay.state(2) is State.DATA
        assert read_views(files_device(overlay), 4096, [12288]) == (
            bytes(4096) + b"f" * 4096 + bytes(4096)
        )


def test_one_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fail(overlay: Overlay) -> None:
        fill(overlay)
        raise StorageError("no room", errno=28)

    with pytest.raises(StorageError):
        Overlay.create(tmp_path / "o", image_id=IMAGE, image_size=SIZE, fill=fail)
    assert list(tmp_path.iterdir()) == []


def test_the_mode_is_in_the_header() -> None:
    header = Header(SIZE, IMAGE, MANIFEST, "@key/label", 7, files=True)
    assert Header.unpack(header.pack()) == header
    assert header.pack()[12:16] == b"\1\0\0\0", "programs that know no flags refuse it"


@pytest.mark.parametrize(("made", "asked"), [("files", "block"), ("block", "files")])
def test_the_other_mode_is_refused(tmp_path: Path, made: str, asked: str) -> None:
    path = tmp_path / "o"
    filled = fill if made == "files" else None
    Overlay.create(path, image_id=IMAGE, image_size=SIZE, fill=filled).close()
    before = path.read_bytes()
    with pytest.raises(MismatchError, match=f"an overlay of mode {made}"):
        Overlay.open(path, image_id=IMAGE, mode=asked)
    assert path.read_bytes() == before
    Overlay.open(path, image_id=IMAGE, mode=None).close()


@pytest.mark.interop
def test_its_file_system_is_whole(tmp_path: Path) -> None:
    with Overlay.create_temporary(
        tmp_path, image_id=IMAGE, image_size=SIZE, fill=lambda it: make_file_system(it, tmp_path)
    ) as overlay:
        image = tmp_path / "image"
        image.write_bytes(read_views(files_device(overlay), 0, [SIZE]))
        assert overlay.info().data_blocks < 1000, "zeros take no room"
    subprocess.run(["/sbin/e2fsck", "-fn", image], check=True, capture_output=True, timeout=BOUND)


def test_a_copy_lies_on_another_image(path: Path) -> None:
    before = path.read_bytes()
    copy = copy_overlay(path, image_id=OTHER, manifest_id=MANIFEST, name="@key/new")
    assert path.read_bytes() == before
    assert copy.stat().st_blocks * 512 < 1 << 20, "holes stay"
    replace_overlay(copy, path)
    assert list(path.parent.iterdir()) == [path]
    with Overlay.open(path, image_id=OTHER, mode="files") as overlay:
        info = overlay.info()
        assert (info.manifest_id, info.name) == (MANIFEST, "@key/new")
        assert read_views(files_device(overlay), 8192, [4096]) == b"f" * 4096


def test_a_copy_without_room_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(StorageError, match="No space left"):
        copy_overlay(path, image_id=OTHER, manifest_id=None, name="")
    assert list(path.parent.iterdir()) == [path]
