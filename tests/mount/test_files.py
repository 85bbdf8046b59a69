"""`files/`: what is in an image's file system, over real FUSE."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.formats.test_ext4 import make_tree
from tests.support.file_systems import make_read_only
from tests.support.mounts import mounted, names, needs_fuse
from tests.support.programs import Nodes, tool

pytestmark = [pytest.mark.interop, needs_fuse]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "tree"
    folder.mkdir()
    make_tree(folder)
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0o4700)
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture(scope="module", params=["ext4", "squashfs"])
def shown(tree: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The image of the tree at a reader that knows only its manifest."""
    image, place = tree.with_name(f"{request.param}.img"), tree.with_name("mount")
    if request.param == "squashfs":
        make_read_only("squashfs", tree, image)
    else:
        image.touch()
        os.truncate(image, 16 << 20)
        tool("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image)
    with Nodes() as nodes:
        seeder, reader = nodes.make(), nodes.make()
        seeded = seeder.json("seed", image, "--name", "files")
        reader.run("info", seeded["link"])
        with mounted(reader, place):
            yield place / seeded["name"]


def test_files_are_shown(shown: Path, tree: Path) -> None:
    files = shown / "files"
    assert json.loads((shown / "manifest.json").read_text())["files"] == "shown"
    assert {path.name for path in files.iterdir()} - {"lost+found"} == {
        path.name for path in tree.iterdir() if path.name != "pipe"
    }
    for path in tree.rglob("*"):
        there = files / path.relative_to(tree)
        if path.is_symlink():
            assert there.readlink() == path.readlink()
        elif path.is_file():
            assert there.read_bytes() == path.read_bytes()
    assert (files / "a/b/c/d").read_text() == "deep"
    assert (shown / "versions/1/files/a/b/c/d").read_text() == "deep"
    assert not (files / "a/absent").exists()
    assert tool("diff", "-r", files / "many", tree / "many") == ""


def test_they_can_be_read_and_are_harmless(shown: Path) -> None:
    """A user who can read the device can read each of its files; a stranger's modes do nothing."""
    facts = (shown / "files/secret").stat()
    assert stat.S_IMODE(facts.st_mode) == 0o555
    assert (facts.st_uid, facts.st_gid) == (os.getuid(), os.getgid())
    assert stat.S_IMODE((shown / "files/small").stat().st_mode) == 0o444
    with pytest.raises(OSError, match="Read-only"):
        (shown / "files/small").write_text("")


def test_other_file_systems_are_told(nodes: Nodes, tmp_path: Path) -> None:
    node = nodes.make()
    (tmp_path / "content").mkdir()
    (tmp_path / "content/file").write_text("x")
    image = tmp_path / "erofs.img"
    make_read_only("erofs", tmp_path / "content", image)
    name = node.json("seed", image, "--name", "other")["name"]
    with mounted(node, tmp_path / "mount"):
        shown = tmp_path / "mount" / name
        assert names(shown) == ["disk.img", "manifest.json", "versions"]
        told = json.loads((shown / "manifest.json").read_text())
        assert told["files"] == "files of erofs are not read: mount disk.img"
