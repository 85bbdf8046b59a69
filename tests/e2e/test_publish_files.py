"""Files overlays go from peer to peer: each user's files over those of the ones before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from p2pcloop.errors import GuestError, MismatchError
from p2pcloop.formats.manifest import open_manifest
from tests.support.file_systems import make_read_only
from tests.support.programs import Guest, Node, Nodes
from tools.tiny_image import fill_root

pytestmark = pytest.mark.e2e


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tree, image = tmp_path / "tree", tmp_path / "image"
    fill_root(tree)
    for name in ("gone", "both", "folder/old"):
        (tree / "srv" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "srv" / name).write_text("base\n")
    make_read_only("squashfs", tree, image)
    return image


def change(node: Node, ref: str | Path, overlay: Path, script: str, seen: str = "") -> None:
    """Boot, look at /srv, change it, and pull the plug: the journal is to be replayed."""
    with Guest(node, ref, "--overlay", overlay, "--overlay-size", "64M") as guest:
        guest.prompt()
        if seen:
            assert guest.sh("cd /srv; find . -type f | sort | xargs grep .") == seen
        guest.sh(f"cd /srv; {script}; sync")
        guest.kill()


def test_they_are_layers_of_what_others_boot(nodes: Nodes, image: Path, tmp_path: Path) -> None:
    first, second, third = nodes.make(), nodes.make(), nodes.make()
    base = first.json("seed", image, "--name", "base")["link"]
    mine = tmp_path / "mine.delta"
    change(first, base, mine, "rm -r gone folder; mkdir folder; echo 1 > folder/new; echo 1 > both")
    before = mine.read_bytes()
    published = first.json("publish", mine, "--name", "mine")
    assert published["changed"]
    assert published["base"].endswith("/base")
    assert published["filesystem"] == "squashfs"
    assert published["stored"] < 200_000
    assert mine.read_bytes() == before, "the journal is replayed in a copy"
    assert not list(tmp_path.glob(".overlay-*"))

    theirs = tmp_path / "theirs.delta"
    link = published["link"]
    change(second, link, theirs, "echo 2 > both; echo 2 > more", "./both:1\n./folder/new:1\n")
    over = second.json("publish", theirs, "--name", "theirs")

    change(first, base, mine, "echo 3 > folder/new")
    again = first.json("publish", mine, "--name", "mine")
    assert again["version"] == 2
    assert again["layers"] == published["layers"] + 1
    assert again["stored"] < published["stored"]

    stacked = "./both:2\n./folder/new:1\n./more:2\n"
    change(third, over["link"], tmp_path / "third.delta", "true", stacked)
    change(third, again["link"], tmp_path / "again.delta", "true", "./both:1\n./folder/new:3\n")
    files = third.home.manifests.iterdir()
    manifests = [open_manifest(path.read_bytes()).manifest for path in files]
    roots = {m.name.label: [root.changes for root in m.boot.roots] for m in manifests}
    assert roots["theirs"] == [False, True, True]
    assert roots["mine"] == [False, True]


def test_one_of_another_image_is_refused(nodes: Nodes, image: Path, tmp_path: Path) -> None:
    node = nodes.make()
    other, mine = tmp_path / "other", tmp_path / "mine.delta"
    (tmp_path / "tree/srv/both").write_text("other\n")
    make_read_only("squashfs", tmp_path / "tree", other)
    base = node.json("seed", other, "--name", "other")["name"]
    change(node, image, mine, "echo 1 > both")
    publish = ("publish", mine, "--name", "mine", "--base", base)
    assert "made on another image" in node.run(*publish, code=MismatchError.exit_code).err


def test_what_replays_the_journal_ends_with_the_command(
    nodes: Nodes, image: Path, tmp_path: Path
) -> None:
    """That was killed: its end of the pipe is closed. No copy is left beside the overlay."""
    node, mine, folder = nodes.make(), tmp_path / "made/mine.delta", tmp_path / "folder"
    mine.parent.mkdir()
    folder.mkdir()
    change(node, image, mine, "echo 1 > both")
    command: list[str | Path] = [sys.executable, "-m", "p2pcloopd.guest.unseen.settle"]
    command += [node.home.root, mine, folder]
    done = subprocess.run(
        command, input="", env=node.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == GuestError.exit_code
    assert "the command that the guest worked for has ended" in done.stderr
    assert list(mine.parent.iterdir()) == [mine]
