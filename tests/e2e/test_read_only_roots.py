"""Guests whose root cannot be written: their changes are files on a second disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pcloop.errors import GuestError, MismatchError, UsageError
from tests.support.file_systems import READ_ONLY, make_read_only
from tests.support.programs import Guest, Node, Nodes
from tests.support.waiting import BOUND
from tools.tiny_image import fill_root

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny root, as files."""
    root = tmp_path_factory.mktemp("tree") / "root"
    fill_root(root)
    return root


@pytest.fixture
def node(nodes: Nodes) -> Node:
    return nodes.make()


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    return tmp_path / "mine.delta"


@pytest.mark.parametrize("kind", READ_ONLY)
def test_changes_are_kept_as_files(
    node: Node, tree: Path, tmp_path: Path, overlay: Path, kind: str
) -> None:
    """The first boot is by the system's kernel, the second by the one that boots by default."""
    image = tmp_path / kind
    make_read_only(kind, tree, image)
    before = image.read_bytes()
    assert node.json("info", image)["overlay_mode"] == "files"
    with Guest(node, image, "--overlay", overlay, "--kernel", "system") as guest:
        guest.prompt()
        guest.sh("echo mine > /root/new && rm /root/hello.deb && sync")
        assert guest.sh("stat -c %a /tmp") == "1777\n"
        guest.sh("[ -d /home ] && [ -d /proc/self ] && [ -d /sys/class ] && [ -c /dev/null ]")
        ramdisk = guest.sh("readlink /ramdisk/home || true")
        assert ramdisk == ("../home\n" if kind == "iso9660" else "")
        guest.kill()
    with Guest(node, image, "--overlay", overlay) as guest:
        guest.prompt()
        assert guest.sh("cat /root/new; ls /root").split() == ["mine", "new"]
        guest.kill()
    assert image.read_bytes() == before


def test_files_over_ext4(node: Node, image: Path, tmp_path: Path, overlay: Path) -> None:
    report = tmp_path / "report"
    words = ("--overlay", overlay, "--overlay-size", "64M", "--report", report)
    with Guest(node, image, *words, "--overlay-mode", "files") as guest:
        guest.prompt()
        guest.sh("echo mine > /root/new")
        guest.power_off()
    told = json.loads(report.read_text())
    assert told["overlay_mode"] == "files"
    assert told["block_server"]["bytes_touched"] > 0
    assert told["block_server"]["files"]["size"] == 64 << 20
    assert told["block_server"]["files"]["data"] > 0
    assert told["profile"]["kept"], "what is read of the image is noted as ever"
    facts = node.json("info", overlay)
    assert (facts["overlay_mode"], facts["size"]) == ("files", 64 << 20)
    before = overlay.read_bytes()
    block = ("boot", image, "--overlay", overlay, "--overlay-mode", "block")
    assert "of mode files" in node.run(*block, code=MismatchError.exit_code).err
    out = tmp_path / "out.img"
    wrong = ("export", image, out, "--overlay", overlay)
    assert "of mode files" in node.run(*wrong, code=MismatchError.exit_code).err
    assert overlay.read_bytes() == before
    assert not out.exists()


def test_what_cannot_be_is_refused_and_makes_nothing(
    node: Node, tree: Path, tmp_path: Path, overlay: Path
) -> None:
    squashfs = tmp_path / "squashfs"
    make_read_only("squashfs", tree, squashfs)
    boot = ("boot", squashfs, "--overlay", overlay)
    said = node.run(*boot, "--overlay-mode", "block", code=UsageError.exit_code).err
    assert "squashfs, which cannot be written" in said
    said = node.run(*boot, "--overlay-size", "1M", code=UsageError.exit_code).err
    assert "hint: give 64M to 16T" in said
    assert not overlay.exists()


def test_a_damaged_file_system_is_told(node: Node, tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_read_only("squashfs", tree, image)
    with open(image, "r+b") as file:
        size = file.seek(0, 2)
        file.seek(96)  # behind the superblock
        file.write(bytes(size - 96))
    with Guest(node, image) as guest:
        assert guest.wait(BOUND) == GuestError.exit_code
    assert "the guest cannot boot: the image's squashfs does not mount" in guest.said
