"""`p2pcloop export` onto what the node itself serves, by whatever name."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import write_cloop_file
from tests.support.programs import Node, Nodes

RAW = random.Random(7).randbytes(4 * 65536)


@pytest.fixture
def node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.make()


def test_what_the_node_serves_is_not_written_over(node: Node, tmp_path: Path) -> None:
    own = write_cloop_file(tmp_path / "own.cloop", RAW)
    name = node.seed(own, "own")["name"]
    before, inode = own.read_bytes(), own.stat().st_ino
    hard, soft = tmp_path / "hard.cloop", tmp_path / "soft.cloop"
    hard.hardlink_to(own)
    soft.symlink_to(own)
    in_home = next(node.home.torrents.glob("*/data/*/index"))
    with open(own, "rb") as file:
        opened = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
        for out in (own, hard, soft, opened):
            ran = node.run("export", name, out, "--force", code=2)
            assert "this node serves it" in ran.err
    for out in (in_home, node.home.names):
        assert "lies in the node's home" in node.run("export", name, out, "--force", code=2).err
    assert (own.read_bytes(), own.stat().st_ino) == (before, inode)
    node.run("export", name, tmp_path / "other.cloop")
    node.run("export", name, tmp_path / "other.cloop", "--force")
    assert node.json("verify", name)["bad"] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("cp", "g1:/etc/hostname", "{own}"),
        ("cp", "g1:/etc/own.cloop", "{folder}"),
        ("boot", "image", "--console", "{own}"),
        ("boot", "image", "--report", "{own}"),
        ("run", "image", "--console", "{own}", "--", "true"),
        ("run", "image", "--report", "{own}", "--", "true"),
        ("resume", "image", "--report", "{own}"),
    ],
    ids=" ".join,
)
def test_no_command_writes_over_what_the_node_serves(
    node: Node, tmp_path: Path, words: tuple[str, ...]
) -> None:
    own = write_cloop_file(tmp_path / "own.cloop", RAW)
    node.seed(own, "image")
    before = own.read_bytes()
    ran = node.run(*(word.format(own=own, folder=tmp_path) for word in words), code=2)
    assert "this node serves it" in ran.err
    assert own.read_bytes() == before


def test_what_a_mirror_directory_serves_is_not_written_over(node: Node, tmp_path: Path) -> None:
    """A node that has an image from a directory reads it there."""
    directory = tmp_path / "mirror"
    name = node.seed(write_cloop_file(tmp_path / "own.cloop", RAW), "own")["name"]
    node.run("mirror", name, directory)
    with Nodes() as nodes:
        other = nodes.make()
        other.run("fetch", f"{directory}/{name}")
        pack = next(directory.glob("data/*/pack"))
        assert "this node serves it" in other.run("export", name, pack, "--force", code=2).err
        assert other.json("verify", name)["bad"] == 0
