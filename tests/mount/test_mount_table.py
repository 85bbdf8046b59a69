"""The system's table of mounts, in which other users choose names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pcloopd import fusermount


def test_mount_points_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    names = ["a\vb", "a\rb", "a\x85b", "a\u2028b", "a\x1cb", "a b", "caf\udce9"]
    escaped = [name.replace(" ", "\\040") for name in names]
    lines = [f"36 35 0:9 / /mnt/{name} rw - fuse.x x rw\n" for name in escaped]
    table.write_bytes(os.fsencode("".join(lines)))
    monkeypatch.setattr(fusermount, "TABLE", table)
    assert fusermount.mounts_of("fuse.x") == [Path("/mnt", name) for name in names]
    assert fusermount.mounted_at(Path("/mnt/a\rb")) is not None
