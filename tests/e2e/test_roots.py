"""Roots that boot, and roots whose init does not start: a line each, and no kernel panic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.errors import GuestError
from tests.support.file_systems import make_writable
from tests.support.programs import Guest, Node, Nodes, tool
from tests.support.waiting import BOUND
from tools.tiny_image import fill_root

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.make()


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_a_root_that_keeps_changed_blocks(node: Node, tmp_path: Path, kind: str) -> None:
    """It may be in a state that only a kernel can mount: it is killed in between."""
    tree, image, overlay = tmp_path / "root", tmp_path / "image", tmp_path / "mine.delta"
    fill_root(tree)
    make_writable(kind, tree, image)
    told = node.json("info", image)
    assert (told["filesystem"], told["overlay_mode"]) == (kind, "block")
    with Guest(node, image, "--overlay", overlay) as guest:
        guest.prompt()
        assert f" on / type {kind} (rw" in guest.sh("mount")
        guest.sh("echo mine > /root/new && sync")
        guest.kill()
    with Guest(node, image, "--overlay", overlay) as guest:
        guest.prompt()
        assert guest.sh("cat /root/new").strip() == "mine"
        guest.kill()


def i386_program(path: Path) -> None:
    """The head of a 32-bit program: what a kernel looks at first."""
    path.write_bytes(b"\x7fELF\1\1\1" + bytes(9) + b"\2\0\3\0\1\0\0\0" + bytes(100))
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("no init", "its root has no /sbin/init"),
        ("i386", "/sbin/init is a 32-bit program, and this kernel runs 64-bit ones alone"),
    ],
)
def test_an_init_that_does_not_start(node: Node, tmp_path: Path, fault: str, why: str) -> None:
    tree, image = tmp_path / "root", tmp_path / "data.ext4"
    (tree / "sbin").mkdir(parents=True)
    if fault == "i386":
        i386_program(tree / "sbin/init")
    tool("mke2fs", "-q", "-t", "ext4", "-d", tree, image, "8M")
    with Guest(node, image) as guest:
        assert guest.wait(BOUND) == GuestError.exit_code
        lines = [line for line in guest.said.splitlines() if line.strip()]
    assert lines == [f"p2pcloop: the guest cannot boot: {why}"]
    assert "panic" not in guest.printed
