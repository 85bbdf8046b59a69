"""Images and nodes of the end-to-end tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.programs import tool
from tools.tiny_image import build_tiny_image

DATA = random.Random(1).randbytes(6 << 20)
"""What /root/data of the image holds: chunks that no boot touches and nothing compresses."""


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw image that boots to a shell in a second; to be read only."""
    directory = tmp_path_factory.mktemp("image")
    path, data = directory / "tiny.img", directory / "data"
    build_tiny_image(path, size=32 << 20)
    data.write_bytes(DATA)
    tool("debugfs", "-w", "-R", f"write {data} /root/data", path)
    path.chmod(0o444)
    return path


@pytest.fixture(scope="session")
def cloop(image: Path) -> Path:
    """The image as a cloop of the field's own tool; to be read only."""
    path = image.with_suffix(".cloop")
    tool("create_compressed_fs", "-B", "65536", "-L", "1", image, path)
    path.chmod(0o444)
    return path
