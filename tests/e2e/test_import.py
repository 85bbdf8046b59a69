"""`p2pcloop import`: what live systems keep beside their CD, over the image that it belongs to."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.errors import GuestError, MismatchError, StorageError, UsageError
from p2pcloop.formats.overlay import Overlay
from tests.support.file_systems import make_read_only
from tests.support.leftovers import nothing_left, wait_cleared, wait_staged
from tests.support.programs import Node, Nodes, tool
from tools.knoppix_cd import fill_tiny, make_cd, make_root

pytestmark = pytest.mark.e2e

FILES = {
    "srv/file": "image",
    "srv/gone": "image",
    "srv/folder-gone/a": "image",
    "srv/replaced/old": "image",
    "srv/joined/old": "image",
    "srv/now-a-file/old": "image",
    "srv/elsewhere/precious": "image",
}
LOOK = (
    "cd /srv; cat file; ls; ls replaced joined; ls -d now-a-file; cat linked/file elsewhere/*;"
    " stat -c '%a %u:%g %h' joined/new"
)


def write(tree: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the image."""
    tree = tmp_path_factory.mktemp("tree") / "files"
    fill_tiny(tree)
    write(tree, FILES)
    (tree / "srv/linked").symlink_to("elsewhere")
    return tree


@pytest.fixture(scope="module")
def cd(tree: Path) -> Path:
    """A KNOPPIX with these files."""
    root, cloop, cd = (tree.with_name(name) for name in ("root.iso", "root.cloop", "cd.iso"))
    make_root(tree, root)
    tool("create_compressed_fs", "-q", "-B", "65536", "-L", "1", root, cloop)
    make_cd(cd, [cloop])
    return cd


@pytest.fixture
def node(nodes: Nodes) -> Iterator[Node]:
    node = nodes.make()
    with nothing_left(node.home.tmp):
        yield node


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "made").mkdir()
    overlay = tmp_path / "made/mine.delta"
    with nothing_left(overlay.parent, overlay):
        yield overlay


def seen(node: Node, cd: Path, overlay: Path, look: str = LOOK) -> str:
    return node.run("run", cd, "--overlay", overlay, "--", "sh", "-c", look).out


def check(text: str) -> None:
    """What `LOOK` shows of the changes, however they were noted."""
    assert text.startswith("changed")
    listed = text.removeprefix("changed").split("\njoined:\n")[0].split()
    assert listed == ["elsewhere", "file", "joined", "linked", "now-a-file", "replaced"]
    assert "joined:\nnew\nold\n\nreplaced:\nnew\n" in text
    assert "\nnow-a-file\n" in text
    assert "overimage4750 12:34 2" in text


def leave_to_the_journal(image: Path, name: str, scratch: Path) -> None:
    """Let the content of a short file be in the journal alone, as after a power failure."""
    [block] = tool("debugfs", "-R", f"blocks {name}", image).split()
    with image.open("r+b") as file:
        file.seek(int(block) * 4096)
        content = file.read(4096)
        file.seek(int(block) * 4096)
        file.write(b"earlier".ljust(4096, b"\0"))
    (scratch / "block").write_bytes(content)
    (scratch / "journal").write_text(f"jo\njw -b {block} {scratch / 'block'}\njc\n")
    tool("debugfs", "-w", "-f", scratch / "journal", image)


def change(top: Path) -> None:
    """The changes, apart from deletions."""
    write(
        top,
        {
            "srv/file": "changed",
            "srv/replaced/new": "new",
            "srv/joined/new": "new",
            "srv/now-a-file": "file",
            "srv/linked/file": "over",
        },
    )
    (top / "srv/joined/new").chmod(0o4750)
    (top / "opt/a b").mkdir(parents=True)
    (top / "opt/a b/one more").hardlink_to(top / "srv/joined/new")
    (top / "opt/loop").symlink_to("loop")
    (top / "opt/away").symlink_to("/etc/passwd")


def test_knoppix_data(node: Node, cd: Path, tmp_path: Path, overlay: Path) -> None:
    """As aufs notes it, in an ext3 whose journal has yet to be replayed. The overlay is published,
    and what arrives is the same."""
    top, image = tmp_path / "top", tmp_path / "knoppix-data.img"
    change(top)
    marks = ("gone", "folder-gone", "..", "")
    write(top, {f"srv/.wh.{name}": "" for name in marks})
    write(top, {"srv/replaced/.wh..wh..opq": "", ".wh..wh.aufs": "", ".wh..wh.plnk/7.8": ""})
    tool("mke2fs", "-q", "-t", "ext3", "-b", "4096", "-d", top, image, "32M")
    inodes = [f"sif /srv/joined/new {field}" for field in ("uid 12", "gid 34")]
    nodes_of_devices = ["cd /srv", "mknod null c 1 3"]
    script = tmp_path / "script"
    script.write_text("\n".join([*inodes, *nodes_of_devices, ""]))
    tool("debugfs", "-w", "-f", script, image)
    leave_to_the_journal(image, "/srv/file", tmp_path)
    before = image.read_bytes()

    seeded = node.json("seed", cd, "--name", "knoppix")
    facts = node.json("import", image, "--base", seeded["name"], "--overlay", overlay)
    assert (facts["deleted"], facts["replaced"]) == (2, 1)
    assert image.read_bytes() == before
    assert Overlay.inspect(overlay).mode == "files"
    published = node.json("publish", overlay, "--name", "mine")
    assert published["base"] == seeded["name"]
    check(node.run("run", published["name"], "--", "sh", "-c", f"rm /srv/null && {LOOK}").out)


@pytest.mark.parametrize("by_root", [True, False])
def test_the_upper_directory_of_an_overlayfs(
    node: Node, cd: Path, tree: Path, tmp_path: Path, overlay: Path, by_root: bool
) -> None:
    """Made by the kernel of this machine, in a mount by root and in one by an ordinary user."""
    if by_root and os.geteuid() != 0:
        pytest.skip("only root sees the marks of a mount by root")
    layer = tmp_path / "layer"
    for name in ("upper", "work", "merged", "changes"):
        (layer / name).mkdir(parents=True)
    change(layer / "changes")
    script = """
        set -e
        mount -t overlay -o "$1,lowerdir=$2,upperdir=upper,workdir=work" overlay merged
        cd merged/srv
        rm -r gone folder-gone replaced now-a-file linked
        cp -a ../../changes/. ..
        chown 12:34 joined/new 2>/dev/null || true
        chmod 4750 joined/new
    """
    inside = ["unshare", "-m"] if by_root else ["unshare", "-rm"]
    option = "index=off" if by_root else "userxattr"
    subprocess.run([*inside, "sh", "-c", script, "sh", option, tree], cwd=layer, check=True)
    shutil.rmtree(layer / "changes")
    facts = node.json("import", layer, "--base", cd, "--overlay", overlay)
    assert facts["deleted"] >= 2
    check(seen(node, cd, overlay).replace("0:0", "12:34"))


def test_the_second_cloop_of_a_remaster(
    node: Node, cd: Path, tmp_path: Path, overlay: Path
) -> None:
    write(tmp_path / "more", {"srv/file": "remastered", "srv/.wh.gone": "", "usr/share/more": "m"})
    root, cloop = tmp_path / "more.iso", tmp_path / "KNOPPIX2"
    make_read_only("iso9660", tmp_path / "more", root)
    tool("create_compressed_fs", "-q", "-B", "65536", "-L", "1", root, cloop)
    said = node.run("import", cloop, "--base", cd, "--overlay", overlay).out
    assert f"p2pcloop boot {cd} --overlay {overlay}" in said
    look = "cat /srv/file /usr/share/more; ls /srv; ls /srv/joined"
    assert seen(node, cd, overlay, look).split("\n") == [
        *("remasteredmelsewhere", "file", "folder-gone", "joined", "linked", "now-a-file"),
        *("replaced", "old", ""),
    ]


def test_a_damaged_file_system_makes_nothing(
    node: Node, cd: Path, tmp_path: Path, overlay: Path
) -> None:
    top, image = tmp_path / "top", tmp_path / "knoppix-data.img"
    write(top, {f"srv/{number}": "x" for number in range(200)})
    tool("mke2fs", "-q", "-t", "ext4", "-d", top, image, "16M")
    found = tool("debugfs", "-R", "blocks /srv", image).split()
    with image.open("r+b") as file:
        for block in found:
            file.seek(int(block) * 1024)
            file.write(b"\xff" * 1024)
    words = ("import", image, "--base", cd, "--overlay", overlay)
    said = node.run(*words, code=GuestError.exit_code).err
    assert f"{image} cannot be imported: " in said
    assert "e2fsck" in said
    assert not overlay.exists()


def test_what_cannot_be_imported_is_told(
    node: Node, cd: Path, tmp_path: Path, overlay: Path
) -> None:
    def refused(source: Path, *words: str | Path, code: int = UsageError.exit_code) -> str:
        where = ("--base", cd, "--overlay", overlay)
        said = node.run("import", source, *where, *words, code=code).err
        assert not overlay.exists()
        return said

    aes = tmp_path / "knoppix-data.aes"
    aes.write_bytes(os.urandom(1 << 20))
    said = refused(aes)
    assert "may be encrypted" in said
    assert "hint: no key leaves the live system: boot the live system with it" in said
    luks = tmp_path / "luks.img"
    luks.write_bytes(b"LUKS\xba\xbe".ljust(1 << 20, b"\0"))
    assert "cryptsetup open" in refused(luks)
    reiser = tmp_path / "reiser.img"
    reiser.write_bytes(bytes(65588) + b"ReIsEr2Fs".ljust(1 << 20, b"\0"))
    assert "holds reiserfs, which no guest reads" in refused(reiser)
    assert "give 64M" in refused(tmp_path, "--overlay-size", "1M")
    moved = tmp_path / "moved"
    (moved / "srv").mkdir(parents=True)
    os.setxattr(moved / "srv", "user.overlay.redirect", b"/before")
    assert "changed with redirect of overlayfs" in refused(moved)
    (tmp_path / "nothing").touch()
    refused(tmp_path / "nothing")
    refused(tmp_path / "absent", code=7)


def test_what_exists_stays(node: Node, cd: Path, tmp_path: Path, overlay: Path) -> None:
    overlay.write_bytes(b"precious")
    words = ("import", tmp_path, "--base", cd, "--overlay", overlay)
    assert "exists already" in node.run(*words, code=MismatchError.exit_code).err
    assert overlay.read_bytes() == b"precious"


def test_a_killed_import_leaves_nothing_in_the_home(node: Node, cd: Path, tmp_path: Path) -> None:
    """What its guest works with goes, once that has ended, too, and a p2pcloopd starts."""
    write(tmp_path / "layer", {"srv/file": "changed"})
    words = ("--base", cd, "--overlay", tmp_path / "mine.delta")
    with node.started("import", tmp_path / "layer", *words) as process:
        wait_staged(node.home, "answer*", process)
        process.kill()
        process.wait()
    wait_cleared(node.home)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_what_only_root_may_read(node: Node, cd: Path, tmp_path: Path, overlay: Path) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer/secret").touch(mode=0)
    words = ("import", tmp_path / "layer", "--base", cd, "--overlay", overlay)
    assert "run it as root" in node.run(*words, code=StorageError.exit_code).err
