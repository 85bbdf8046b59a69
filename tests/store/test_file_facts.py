"""File systems that keep neither permissions nor times, as a stick that another user mounted."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from p2pcloop.cli.image_output import replacing
from p2pcloop.formats.mirror import ManifestPath
from p2pcloop.store.file_facts import set_mode, set_time
from p2pcloop.store.mirror import open_mirror_directory


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_what_keeps_none_takes_images_and_mirrors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("chmod", "fchmod", "utime"):
        monkeypatch.setattr(os, name, refuse)
    with replacing(tmp_path / "out.img") as file:
        file.write(b"image")
    with open_mirror_directory(tmp_path) as mirror:
        mirror.write(ManifestPath(bytes(32)), b"manifest")
    set_time(tmp_path, 0)
    assert (tmp_path / "out.img").read_bytes() == b"image"
    assert (tmp_path / str(ManifestPath(bytes(32)))).read_bytes() == b"manifest"


def test_a_disk_that_fails_is_told(tmp_path: Path) -> None:
    for change in (set_mode, set_time):
        with pytest.raises(FileNotFoundError):
            change(tmp_path / "none", 0)
