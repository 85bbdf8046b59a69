"""Homes on file systems that lack something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.programs import Guest, Nodes, tool

from .conftest import DATA

pytestmark = pytest.mark.e2e


@contextmanager
def without_mappings(folder: Path) -> Iterator[Path]:
    """A file system in user space that maps no file shared, as some of the network do."""
    below, place = folder / "below", folder / "direct"
    below.mkdir(mode=0o700)
    place.mkdir()
    tool("bindfs", "-o", "direct_io", below, place)
    try:
        yield place
    finally:
        tool("fusermount", "-u", "-z", place)


def test_a_home_without_shared_mappings(nodes: Nodes, image: Path, cloop: Path) -> None:
    link = nodes.make().seed(cloop)["link"]
    with without_mappings(nodes.directory) as place:
        reader = nodes.make(root=place / "home")
        try:
            with Guest(reader, link, "--overlay", nodes.directory / "mine.delta") as guest:
                guest.prompt()
                assert f"{len(DATA)}" in guest.sh("cat /root/data | wc -c")
                guest.power_off()
            out = nodes.directory / "out.img"
            reader.run("export", link, out)
            reader.run("mirror", link, nodes.directory / "mirror")
        finally:
            reader.run("daemon", "stop", "--force")
    assert out.read_bytes() == image.read_bytes()
