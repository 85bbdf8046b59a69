"""Joining files in a guest, which another program runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pcloop.client import joined_root
from p2pcloop.making.local import inspect_file
from p2pcloop.store.home import Home


def test_what_was_begun_does_not_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C left gigabytes in the home."""
    home = Home(tmp_path / "home")
    home.create()
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))

    def interrupted(*_: str, line: str) -> None:
        Path(json.loads(line)["made"]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(joined_root, "describe_root", lambda *_: {})
    monkeypatch.setattr(joined_root, "run_module", interrupted)
    opened = joined_root.open_joined_root(
        inspect_file(image, raw=True), None, b"", home, quiet=True
    )
    with pytest.raises(KeyboardInterrupt), opened:
        pytest.fail("nothing was made")
    assert list(home.tmp.iterdir()) == []
