"""A seeder, and a reader that knows its image and has mounted it: for tests that only read."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounts import mounted
from tests.support.programs import Node, Nodes

MIB = 1 << 20

_some = random.Random(1)

CONTENT = _some.randbytes(5 * MIB) + bytes(3 * MIB) + _some.randbytes(2 * MIB) + bytes(MIB)
"""What the device holds: data, a hole, data, a hole."""


@dataclass(frozen=True)
class Mounted:
    """A mounted tree.

    Attributes:
        seeded: what `seed` told of the image.
        image: its directory in the tree.
    """

    seeder: Node
    reader: Node
    seeded: dict[str, Any]
    root: Path
    process: subprocess.Popen[str]

    @property
    def image(self) -> Path:
        return self.root / str(self.seeded["name"])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """The image of a seeder, at a reader that has nothing of it yet but its manifest."""
    folder = tmp_path_factory.mktemp("mount")
    raw = folder / "image.img"
    raw.write_bytes(CONTENT)
    with Nodes() as nodes:
        seeder, reader = nodes.make(), nodes.make()
        seeded = seeder.seed(raw, "image")
        reader.run("info", seeded["link"])
        with mounted(reader, folder / "tree") as process:
            yield Mounted(seeder, reader, seeded, folder / "tree", process)
