"""`p2pcloop mirror` into a directory in which something is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError
from tests.support.images import write_cloop_file
from tests.support.programs import Node, Nodes


@pytest.fixture
def node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.make()


@pytest.fixture
def name(node: Node, tmp_path: Path) -> str:
    image = write_cloop_file(tmp_path / "own.cloop", random.Random(7).randbytes(4 * 65536))
    told: str = node.seed(image, "own")["name"]
    return told


@pytest.mark.parametrize("url", [(), ("--url", "https://example.org/images/")])
def test_metadata_that_is_none_is_written_again(
    node: Node, tmp_path: Path, name: str, url: tuple[str, ...]
) -> None:
    """Its readers would find nothing there, although it was told that all is well."""
    directory = tmp_path / "mirror"
    node.run("mirror", name, directory, *url)
    [metadata] = directory.glob("torrents/*.torrent")
    whole = metadata.read_bytes()
    for damage in (b"junk", b"", whole[:-20], whole[:100] + b"x" + whole[101:]):
        metadata.write_bytes(damage)
        node.run("mirror", name, directory, *url)
        assert metadata.read_bytes() == whole


def test_a_record_that_is_none_is_named(node: Node, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "mirror"
    node.run("mirror", name, directory)
    (directory / name).write_bytes(b"")
    told = node.run("mirror", name, directory, code=FormatError.exit_code).err
    assert f"{directory / name} is no record" in told
    assert "move it away" in told
