"""Stored images that commands read from end to end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pcloop.client import stored
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.image.stored import StoredImage
from p2pcloop.store.home import Home


def test_a_command_keeps_decoded_chunks_in_a_file_of_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else chunks of chains that it reads out of order are decoded again and again."""
    options: dict[str, Any] = {}
    image = SimpleNamespace(open=lambda **given: options.update(given))
    monkeypatch.setattr(StoredImage, "of_home", lambda *_: image)
    monkeypatch.setattr(stored, "Lease", lambda *_: None)
    signed = SimpleNamespace(id=bytes(32), manifest=None)
    ref = SimpleNamespace(client=None, signed=signed, secret=None)
    home = Home(tmp_path)
    stored.Source(cast(StoredRef, ref), home).open()
    assert options == {"spill": home.tmp}
