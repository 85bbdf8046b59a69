"""What a boot's report says of its image."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.making.local import inspect_file
from p2pcloop.store.home import Home
from p2pcloopd.guest.report import image_facts


@pytest.mark.parametrize("size", [8192, 5000])
def test_the_image_has_its_true_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.img").write_bytes(bytes(size))
    facts = image_facts(inspect_file(tmp_path / "a.img"), None, Home.at(tmp_path / "home"))
    assert facts["image_size"] == size
