"""`p2pcloop rebase`: a files overlay over a newer image, of another type even."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.errors import BusyError, MismatchError, NotHereError
from p2pcloop.formats.overlay import Overlay
from tests.support.file_systems import make_read_only
from tests.support.programs import Guest, Node, Nodes
from tools.tiny_image import fill_root

pytestmark = pytest.mark.e2e

CHANGES = (
    "cd /srv; echo m > both; echo m > mine; rm gone both-gone; printf 2 > same; "
    "rm -r swapped; mkdir swapped; echo m > swapped/mine; echo m > meta/mine; sync"
)


def write(tree: Path, content: str, *names: str) -> None:
    for name in names:
        path = tree / "srv" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """An old image and a newer one."""
    old, new = tmp_path / "old", tmp_path / "new"
    fill_root(old)
    write(old, "1", "both", "mine", "theirs", "gone", "both-gone", "same", "swapped/f", "meta/f")
    shutil.copytree(old, new, symlinks=True)
    write(new, "2", "both", "theirs", "gone", "same", "swapped/f")
    (new / "srv/both-gone").unlink()
    (new / "srv/meta").chmod(0o700)
    made = tmp_path / "old.squashfs", tmp_path / "new.erofs"
    make_read_only("squashfs", old, made[0])
    make_read_only("erofs", new, made[1])
    return made


@pytest.fixture
def node(nodes: Nodes) -> Iterator[Node]:
    node = nodes.make()
    yield node
    assert list(node.home.tmp.iterdir()) == []


def test_a_files_overlay_moves(node: Node, images: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = images
    overlay, other = tmp_path / "mine.delta", tmp_path / "other.delta"
    with Guest(node, old, "--overlay", overlay, "--overlay-size", "64M") as guest:
        guest.prompt()
        guest.sh(CHANGES)
        guest.kill()  # its journal is to be replayed
    before = overlay.read_bytes()
    rebase = ("rebase", overlay, "--onto", new, "--base", old)
    stopped = node.run(*rebase, code=MismatchError.exit_code)
    told = [
        "/srv/both: changed here, changed there",
        "/srv/gone: deleted here, changed there",
        "/srv/meta: changed here, changed there",
        "/srv/swapped: replaced here, changed there",
    ]
    assert stopped.out.splitlines() == told
    assert "--theirs" in stopped.err
    assert overlay.read_bytes() == before
    assert not list(tmp_path.glob(".overlay-*"))

    other.write_bytes(before)
    node.run("rebase", other, "--onto", new, "--base", old, "--ours")
    answer = node.json(*rebase, "--theirs")
    assert answer["moved"]
    assert [f"{c['path']}: {c['ours']} here, {c['theirs']} there" for c in answer["conflicts"]] == (
        told
    )
    for path, seen in (
        (other, ["m", "mine", "755", "m", "2", "2"]),
        (overlay, ["2", "f", "700", "m", "2", "2", "gone"]),
    ):
        with Guest(node, new, "--overlay", path) as guest:
            guest.prompt()
            look = "cat both; echo; ls swapped; stat -c %a meta; cat mine theirs; echo; cat same;"
            there = guest.sh(f"cd /srv; {look} echo; ls -d both-gone gone 2>/dev/null || true")
            assert there.split() == seen
            guest.kill()
    node.run("boot", old, "--overlay", overlay, code=MismatchError.exit_code)


def test_what_cannot_be_moved_is_refused(
    node: Node, images: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = images
    block, files = tmp_path / "block", tmp_path / "files"
    Overlay.create(block, image_id=bytes(32), image_size=4096).close()
    said = node.run("rebase", block, "--onto", new, code=MismatchError.exit_code).err
    assert "mode files is needed here" in said
    with Overlay.create(files, image_id=bytes(32), image_size=4096, fill=lambda _: None):
        node.run("rebase", files, "--onto", new, code=BusyError.exit_code)
    node.run("rebase", files, "--onto", new, code=NotHereError.exit_code)
    wrong = ("rebase", files, "--onto", new, "--base", old)
    assert "made on another image" in node.run(*wrong, code=MismatchError.exit_code).err
