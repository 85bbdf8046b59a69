"""The mounted tree as programs see it: real FUSE, real nodes."""

from __future__ import annotations

import json
import mmap
import os
import stat
from pathlib import Path

import pytest

from p2pcloop.formats.name import format_key
from tests.support.mounts import mounted, names, needs_fuse
from tests.support.programs import Nodes, tool
from tests.support.users import AS_ANOTHER_USER, needs_another_user
from tests.support.waiting import wait_until

from .conftest import CONTENT, MIB, Mounted

pytestmark = [pytest.mark.interop, needs_fuse]


def test_directories_list_what_is_known(tree: Mounted) -> None:
    key, label = tree.seeded["name"].split("/")
    assert names(tree.root) == [key]
    assert names(tree.root / key) == [label]
    assert names(tree.image) == ["disk.img", "manifest.json", "versions"]
    assert names(tree.image / "versions") == ["1"]
    assert names(tree.image / "versions/1") == ["disk.img", "manifest.json"]


def test_the_manifest_tells_what_was_signed(tree: Mounted) -> None:
    told = json.loads((tree.image / "manifest.json").read_text())
    assert (told["name"], told["version"]) == (tree.seeded["name"], 1)
    assert told["size"] == len(CONTENT)
    assert [layer["torrent"] for layer in told["layers"]] == [tree.seeded["torrent"]]
    info = tree.reader.json("info", tree.seeded["name"])
    assert (told["manifest"], told["image_id"]) == (info["manifest"], info["image_id"])


def test_the_device_is_read_as_it_was_seeded(tree: Mounted) -> None:
    disk = tree.image / "disk.img"
    facts = disk.stat()
    assert facts.st_size == len(CONTENT)
    assert stat.S_IMODE(facts.st_mode) == 0o444
    assert (facts.st_uid, facts.st_gid) == (os.getuid(), os.getgid())
    assert facts.st_ino == (tree.image / "versions/1/disk.img").stat().st_ino
    assert disk.read_bytes() == CONTENT
    with disk.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[5 * MIB - 100 : 5 * MIB + 100] == CONTENT[5 * MIB - 100 : 5 * MIB + 100]


def test_reads_of_any_place_and_length(tree: Mounted) -> None:
    with (tree.image / "disk.img").open("rb", buffering=0) as file:
        for offset, length in (
            *((0, 1), (4095, 2), (5 * MIB - 1, 2), (1, 3 * MIB), (len(CONTENT) - 1, 10)),
            *((len(CONTENT), 10), (len(CONTENT) + MIB, 1)),
        ):
            assert os.pread(file.fileno(), length, offset) == CONTENT[offset : offset + length]


def test_direct_reads(tree: Mounted) -> None:
    """As qemu's cache=none and losetup --direct-io make them: past the page cache."""
    fd = os.open(tree.image / "disk.img", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 2 * MIB) as buffer:
            assert os.preadv(fd, [buffer], 4 * MIB) == 2 * MIB
            assert buffer[:] == CONTENT[4 * MIB : 6 * MIB]
    finally:
        os.close(fd)


def test_holes_are_told(tree: Mounted, tmp_path: Path) -> None:
    disk = tree.image / "disk.img"
    with disk.open("rb") as file:
        fd, end = file.fileno(), len(CONTENT)
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 5 * MIB
        assert os.lseek(fd, 5 * MIB, os.SEEK_DATA) == 8 * MIB
        assert os.lseek(fd, 8 * MIB + 5, os.SEEK_DATA) == 8 * MIB + 5
        assert os.lseek(fd, 8 * MIB, os.SEEK_HOLE) == 10 * MIB
        assert os.lseek(fd, 10 * MIB + 1, os.SEEK_HOLE) == 10 * MIB + 1
        for offset in (10 * MIB, end):
            with pytest.raises(OSError, match="No such device or address"):
                os.lseek(fd, offset, os.SEEK_DATA)
    copy = tmp_path / "copy.img"
    tool("cp", "--sparse=auto", disk, copy)
    assert copy.read_bytes() == CONTENT
    assert copy.stat().st_blocks * 512 < len(CONTENT)


def test_nothing_can_be_changed(tree: Mounted) -> None:
    disk = tree.image / "disk.img"
    for change in (
        lambda: disk.open("r+b"),
        lambda: (tree.image / "new").write_text(""),
        disk.unlink,
        (tree.root / "new").mkdir,
        lambda: disk.chmod(0o600),
        lambda: os.truncate(disk, 0),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    with pytest.raises(OSError, match="not supported"):
        os.getxattr(disk, "user.any")


def test_names_that_are_none_ask_no_other_node(tree: Mounted) -> None:
    """Else a file manager, which looks for such names everywhere, would ask each time."""
    key = tree.root / tree.seeded["name"].split("/")[0]
    for path in (
        *(tree.root / "absent", tree.root / "@absent", tree.root / ".Trash", key / ".hidden"),
        *(key / "UPPER", key / "a b", tree.image / "absent", tree.image / "disk.img.bak"),
        *(tree.image / "versions/0", tree.image / "versions/01", tree.image / "versions/x"),
    ):
        assert not path.exists()
    other = f"@{format_key(bytes(32))}"
    assert names(tree.root / other) == []  # any key is a directory
    assert other not in names(tree.root)
    with pytest.raises(NotADirectoryError):
        (tree.image / "disk.img/x").stat()
    assert not (key / ("a" * 255)).exists()


def test_foreign_readers(tree: Mounted, tmp_path: Path) -> None:
    disk = tree.image / "disk.img"
    told = tool("qemu-img", "info", "--output=json", "-f", "raw", disk)
    assert json.loads(told)["virtual-size"] == len(CONTENT)
    raw = tmp_path / "raw.img"
    raw.write_bytes(CONTENT)
    tool("qemu-img", "compare", "-f", "raw", "-F", "raw", disk, raw)
    pattern = tool("qemu-io", "-r", "-f", "raw", disk, "-c", f"read -P 0 {5 * MIB} {3 * MIB}")
    assert "failed" not in pattern
    assert tool("cmp", disk, raw) == ""
    assert "disk.img" in tool("find", tree.image, "-type", "f")


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(),
    reason="loop devices need root and /dev/loop-control",
)
def test_a_loop_device(tree: Mounted) -> None:
    loop = tool("losetup", "--find", "--show", "--read-only", tree.image / "disk.img").strip()
    try:
        assert Path(loop).read_bytes() == CONTENT
    finally:
        tool("losetup", "--detach", loop)


@needs_another_user
def test_other_users_see_nothing(tree: Mounted) -> None:
    tool(*AS_ANOTHER_USER, "ls", tree.root, code=2)


def test_a_private_image(nodes: Nodes, tmp_path: Path) -> None:
    """It is readable where its key is known; where it is not, its reader is refused."""
    raw = tmp_path / "raw.img"
    raw.write_bytes(CONTENT)
    publisher, reader = nodes.make(), nodes.make()
    whole = publisher.json("publish", raw, "--raw", "--name", "secret", "--private")["link"]
    public = whole.partition("#key=")[0]
    info = reader.json("info", public)
    assert info["private"] is True
    with mounted(reader, tmp_path / "tree"):
        disk = tmp_path / "tree" / info["name"] / "disk.img"
        with pytest.raises(PermissionError):
            disk.read_bytes()
        reader.run("info", whole)
        assert disk.read_bytes() == CONTENT


def test_versions(nodes: Nodes, tmp_path: Path) -> None:
    """A newer version is the image's device at once; the older one stays below its number."""
    node = nodes.make()
    one, two = tmp_path / "one.img", tmp_path / "two.img"
    one.write_bytes(CONTENT)
    two.write_bytes(CONTENT[:MIB] + bytes(4096) + CONTENT[MIB + 4096 :])
    name = node.seed(one, "twice")["name"]
    with mounted(node, tmp_path / "tree"):
        image = tmp_path / "tree" / name
        assert names(image / "versions") == ["1"]
        node.run("publish", two, "--base", name, "--name", "twice", "--raw")
        wait_until(lambda: names(image / "versions") == ["1", "2"])
        wait_until(lambda: json.loads((image / "manifest.json").read_text())["version"] == 2)
        assert (image / "disk.img").read_bytes() == two.read_bytes()
        assert (image / "versions/1/disk.img").read_bytes() == one.read_bytes()
        node.run("unpublish", name)
        wait_until(lambda: names(image) == ["manifest.json", "versions"])
        # The kernel keeps for a second that this name leads to the older version's.
        wait_until(lambda: json.loads((image / "manifest.json").read_text())["withdrawn"])
        told = json.loads((image / "manifest.json").read_text())
        assert told["files"] == "the version is withdrawn"
        assert (image / "versions/2/disk.img").stat().st_size == len(CONTENT)
