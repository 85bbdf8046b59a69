"""Images and nodes of the end-to-end tests."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloopd.guest.system.kernel import unpacked_kernel
from tests.support.programs import tool
from tools.tiny_image import build_tiny_image

DATA = random.Random(1).randbytes(6 << 20)
"""What /root/data of the image holds: chunks that no boot touches and nothing compresses."""

ON_THE_NEWER_KERNEL = {
    f"test_{name}.py"
    for name in (
        *("cd_images", "cp", "crash", "desktop", "display", "eviction", "examples", "exec"),
        *("export_iso", "foreign_sources", "import", "mirror", "odd_homes", "odd_length"),
        *("optimize", "private_images", "profiles", "publish", "publish_files"),
        *("quickstart_debian", "rebase", "run", "seed_kinds", "state_commands", "stock_images"),
        *("two_nodes", "versions"),
    )
}
"""Tests of programs in guests, and of what guests read and where from: a boot of the tiny image
takes half the processor time there. Tests of guests themselves run on the system's kernel, or on
both."""


@pytest.fixture(scope="module", autouse=True)
def kernel_of_guests(request: pytest.FixtureRequest) -> Iterator[None]:
    """Choose the kernel, where none was chosen by hand."""
    newer = unpacked_kernel()
    chosen = "P2PCLOOP_KERNEL_OF_TESTS" not in os.environ
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name in ON_THE_NEWER_KERNEL and newer.exists() and not chosen:
            patch.setenv("P2PCLOOP_KERNEL", str(newer.resolve()))
        yield


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
