"""What `seed` and its kin take for an image, and under which name: one node, no guest."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.formats.filesystem import detect_filesystem
from p2pcloop.formats.profile import Profile, Touch, pack_profile, pack_touches
from p2pcloop.store.profiles import keep_profile
from tests.support.cds import make_iso
from tests.support.disks import EFI, LINUX, make_gpt
from tests.support.images import make_image, write_cloop_file
from tests.support.programs import Guest, Node, Nodes, tool
from tools.tiny_image import fill_root

pytestmark = pytest.mark.e2e

MIB = 1 << 20


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.make()


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system of 2 MiB."""
    path = tmp_path_factory.mktemp("ext4") / "fs.img"
    path.touch()
    os.truncate(path, 2 * MIB)
    tool("mke2fs", "-q", "-t", "ext4", path)
    return path


def exported(node: Node, ref: str | Path, out: Path) -> bytes:
    node.run("export", ref, out, "--force")
    return out.read_bytes()


def test_one_image_in_many_forms_is_one_version(node: Node, ext4: Path, tmp_path: Path) -> None:
    """Wherever it lies, and however it is packed: it is the same image."""
    qcow2, disk = tmp_path / "form.qcow2", tmp_path / "form.disk"
    tool("qemu-img", "convert", "-O", "qcow2", ext4, qcow2)
    packed = tmp_path / "form.img.gz"
    packed.write_bytes(gzip.compress(ext4.read_bytes()))
    both = {1: (LINUX, ext4.read_bytes()), 15: (EFI, bytes(MIB))}
    disk.write_bytes(make_gpt(both))
    seeded = [node.json("seed", path) for path in (qcow2, packed, disk)]
    assert [each["version"] for each in seeded] == [1, 1, 1]
    assert [each["changed"] for each in seeded] == [True, False, False]
    assert {each["name"] for each in seeded} == {seeded[0]["name"]}
    assert seeded[2]["images"] == ["partition 1"]
    for ref in (qcow2, packed, disk, seeded[0]["name"]):
        assert exported(node, ref, tmp_path / "out.img") == ext4.read_bytes()
    assert node.json("info", packed)["container"] == ["gz"]
    assert node.json("info", disk)["partition"] == "partition 1"
    assert node.json("verify", qcow2)["file"] == str(qcow2)
    # What was unpacked for a command goes with it.
    assert not list(node.home.tmp.iterdir())


def test_another_partition_of_a_disk_is_another_image(
    node: Node, ext4: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "two.disk"
    data = ext4.read_bytes()
    disk.write_bytes(make_gpt({1: (LINUX, data), 2: (LINUX, data + bytes(MIB))}))
    assert node.json("seed", disk, "--partition", "1")["version"] == 1
    refused = node.run("seed", disk, "--partition", "2", code=2).err
    assert f"was made of {disk}/partition 1, and {disk}/partition 2 holds another" in refused
    node.run("seed", disk, "--raw", code=2)
    disk.write_bytes(make_gpt({1: (LINUX, data[:-1] + b"x"), 2: (LINUX, data)}))
    assert node.json("seed", disk, "--partition", "1")["version"] == 2


def test_another_image_of_the_same_stem_is_refused(node: Node, ext4: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "t.img", tmp_path / "t.raw"
    shutil.copy(ext4, first)
    other = bytearray(ext4.read_bytes())
    other[-MIB:] = os.urandom(MIB)
    second.write_bytes(other)
    assert node.json("seed", first)["version"] == 1
    refused = node.run("seed", second, code=2)
    assert f"version 1, was made of {first}, and {second} holds another image" in refused.err
    assert "--name OTHER" in refused.err
    assert "--as-new-version" in refused.err
    larger = tmp_path / "t.qcow2"
    tool("qemu-img", "convert", "-O", "qcow2", second, larger)
    tool("qemu-img", "resize", "-q", larger, "3M")
    node.run("seed", larger, "--name", "t", code=2)
    assert node.json("seed", second, "--as-new-version")["version"] == 2
    assert node.json("seed", second)["version"] == 2
    node.run("seed", first, code=2)
    # The same file with new content is the next version, and so is a link to it.
    other[-10:] = b"x" * 10
    second.write_bytes(other)
    (tmp_path / "current").symlink_to(second)
    assert node.json("seed", tmp_path / "current", "--name", "t")["version"] == 3
    # The same image elsewhere is no new version, and from then on it is made of that.
    second.rename(tmp_path / "moved.img")
    assert not node.json("seed", tmp_path / "moved.img", "--name", "t")["changed"]
    other[-5:] = b"y" * 5
    (tmp_path / "moved.img").write_bytes(other)
    assert node.json("seed", tmp_path / "moved.img", "--name", "t")["version"] == 4


def versions(node: Node, name: str) -> list[tuple[int, str]]:
    return [(each["version"], each["message"]) for each in node.json("log", name)["versions"]]


def test_a_file_seeded_again_takes_no_newer_version_back(node: Node, tmp_path: Path) -> None:
    """Every reader that updates would lose what was published since."""
    raw = make_image(5 << 16, seed=5)
    cloop = write_cloop_file(tmp_path / "kept.cloop", raw)
    changed = tmp_path / "changed.img"
    changed.write_bytes(raw[:100_000] + b"new" + raw[100_003:] + b"more" * 1024)
    first = node.seed(cloop, "kept")
    second = node.json("publish", changed, "--raw", "--name", "kept", "-m", "a change")
    assert (second["version"], second["layers"]) == (2, 2)
    keeps = "version 2 (a change) lies on this file and stays the newest"

    again = node.run("seed", cloop, "--raw")
    assert keeps in again.err
    assert second["link"] in again.out
    moved = tmp_path / "moved.cloop"
    cloop.rename(moved)
    answer = node.seed(moved, "kept")
    assert (answer["version"], answer["changed"]) == (2, False)
    assert (answer["manifest"], answer["link"]) == (second["manifest"], second["link"])
    refused = node.run("seed", moved, "--raw", "--name", "kept", "--append", "quiet", code=2)
    assert "--as-new-version" in refused.err
    assert versions(node, first["name"]) == [(2, "a change"), (1, "")]

    # On purpose it is the next version.
    assert node.seed(moved, "kept", "--as-new-version")["version"] == 3
    assert node.seed(moved, "kept")["changed"] is False


def test_the_content_of_an_older_version_is_no_new_one(node: Node, tmp_path: Path) -> None:
    image = tmp_path / "older.img"
    old, new = make_image(300_000, seed=6), make_image(300_000, seed=7)
    for number, content in enumerate((old, new), start=1):
        image.write_bytes(content)
        assert node.seed(image, "older")["version"] == number
    image.write_bytes(old)
    again = node.run("seed", image, "--raw")
    assert "version 1 was made of this content; version 2 stays the newest" in again.err
    assert node.seed(image, "older", "--as-new-version")["version"] == 3

    # A withdrawal is not taken back either, unless the content is new.
    node.run("unpublish", "older", "-m", "a mistake")
    refused = node.run("seed", image, "--raw", code=2)
    assert "is withdrawn, by version 4" in refused.err
    assert "--as-new-version" in refused.err
    image.write_bytes(make_image(300_000, seed=8))
    assert node.seed(image, "older")["version"] == 5


def test_a_file_seeded_again_after_a_boot_is_a_version_with_a_profile(
    node: Node, tmp_path: Path
) -> None:
    cloop = write_cloop_file(tmp_path / "booted.cloop", make_image(300_000, seed=9))
    first = node.seed(cloop, "booted")
    touches = pack_touches([Touch(0, 10, 0)])
    profile = Profile(bytes.fromhex(first["image_id"]), first["size"], 0, touches)
    keep_profile(node.home, pack_profile(profile))
    assert node.seed(cloop, "booted")["version"] == 2
    assert node.seed(cloop, "booted")["changed"] is False
    assert versions(node, first["name"]) == [(2, "with a profile"), (1, "")]


def test_an_empty_label_is_refused(node: Node, ext4: Path) -> None:
    for words in (("seed", ext4), ("publish", ext4)):
        assert "'' is not a label" in node.run(*words, "--name", "", code=2).err


def test_what_is_no_image_is_refused_and_named(node: Node, tmp_path: Path) -> None:
    noise, text, tar = tmp_path / "noise", tmp_path / "text", tmp_path / "x.tar"
    noise.write_bytes(make_image(200_000, seed=2))
    text.write_bytes(b"root:x:0:0:root:/root:/bin/bash\n")
    tool("tar", "-cf", tar, "-C", tmp_path, "text")
    for command in (("seed", "--name", "x"), ("publish", "--name", "x")):
        said = node.run(command[0], noise, *command[1:], code=2).err
        assert f"{noise} may be no disk image: it holds no file system that is known" in said
        assert "--raw" in said
    for path, what in ((text, "text"), (tar, "a tar archive")):
        for words in (
            *(("seed",), ("info",), ("boot",)),
            *(("export", str(tmp_path / "out")), ("block", "--nbd", f"unix:{tmp_path}/s")),
        ):
            said = node.run(words[0], path, *words[1:], code=2).err
            assert f"{path} is no disk image: it is {what}" in said
    assert node.json("seed", noise, "--raw", "--name", "noise")["version"] == 1


def test_a_download_that_broke_off_is_refused(node: Node, ext4: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.img"
    cut.write_bytes(ext4.read_bytes()[:MIB])
    for words in (("seed",), ("publish", "--name", "x"), ("info",), ("boot",)):
        said = node.run(words[0], cut, *words[1:], code=3).err
        assert f"{cut} is cut off" in said
        assert f"{2 * MIB} bytes, and {MIB} are here" in said


def test_an_odd_device_in_a_qcow2_keeps_its_length(node: Node, tmp_path: Path) -> None:
    raw, odd = tmp_path / "raw", tmp_path / "odd.qcow2"
    raw.write_bytes(make_image(100_352, seed=2))  # 24.5 blocks of 4 KiB
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, odd)
    for words in (("seed", "--name", "odd"), ("publish", "--name", "odder")):
        done = node.run(words[0], odd, "--raw", *words[1:], "--json")
        assert json.loads(done.out)["size"] == 100_352
        assert "tmp/seed-" not in done.err


def test_layers_of_a_live_cd_are_joined(node: Node, tmp_path: Path) -> None:
    layers = {}
    for name in ("minimal", "minimal.standard", "minimal.de"):
        tree = tmp_path / name
        tree.mkdir()
        (tree / name).write_bytes(os.urandom(100_000))
        tool("mksquashfs", tree, tmp_path / "sq", "-quiet", "-no-progress", "-noappend")
        layers[f"casper/{name}.squashfs"] = (tmp_path / "sq").read_bytes()
    cd = make_iso(tmp_path / "ubuntu.iso", layers, "-r", "-J", "-joliet-long")
    said = node.run("seed", cd)
    assert "from that CD: casper/minimal.squashfs, casper/minimal.standard.squashfs" in said.out
    assert "left out: casper/minimal.de.squashfs" in said.err
    unknown = make_iso(tmp_path / "slax.iso", {"slax/1.sb": layers["casper/minimal.squashfs"]})
    said = node.run("seed", unknown, code=2)
    assert f"{unknown} is a live CD of a kind that is not known: SLAX/1.SB" in said.err


def test_a_root_within_a_squashfs_on_a_cd(node: Node, ext4: Path, tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out.img"
    (tree / "LiveOS").mkdir(parents=True)
    shutil.copy(ext4, tree / "LiveOS/rootfs.img")
    tool("mksquashfs", tree, tmp_path / "sq", "-quiet", "-no-progress")
    files = {"LiveOS/squashfs.img": (tmp_path / "sq").read_bytes()}
    cd = make_iso(tmp_path / "fedora.iso", files, "-r")
    seeded = node.json("seed", cd)
    assert (seeded["filesystem"], seeded["in_place"]) == ("ext4", False)
    assert exported(node, cd, out) == ext4.read_bytes()
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "init").write_bytes(b"#!")
    tool("mksquashfs", plain, tmp_path / "sq2", "-quiet", "-no-progress")
    cd = make_iso(tmp_path / "void.iso", {"LiveOS/squashfs.img": (tmp_path / "sq2").read_bytes()})
    seeded = node.json("seed", cd)
    assert (seeded["filesystem"], seeded["in_place"]) == ("squashfs", True)
    assert detect_filesystem(exported(node, cd, out)) == "squashfs"


def test_a_guest_of_a_packed_disk_keeps_its_changes(
    node: Node, image: Path, tmp_path: Path
) -> None:
    """Unpacked anew for each boot, it is the same image for the overlay."""
    disk, packed = tmp_path / "disk", tmp_path / "disk.qcow2.gz"
    disk.write_bytes(make_gpt({1: (LINUX, image.read_bytes()), 15: (EFI, bytes(MIB))}))
    tool("qemu-img", "convert", "-O", "qcow2", disk, tmp_path / "q")
    packed.write_bytes(gzip.compress((tmp_path / "q").read_bytes(), 1))
    overlay = tmp_path / "mine.delta"
    for command, expected in (("echo kept > /root/note; sync", ""), ("cat /root/note", "kept")):
        with Guest(node, packed, "--overlay", overlay) as guest:
            guest.prompt()
            assert guest.sh(command).strip() == expected
            guest.power_off()
    assert not list(node.home.tmp.glob("seed-*"))


def test_layers_of_a_live_cd_are_one_root_for_a_guest(node: Node, tmp_path: Path) -> None:
    root, more = tmp_path / "root", tmp_path / "more"
    fill_root(root)
    (more / "root").mkdir(parents=True)
    (more / "root/note").write_text("from the layer above")
    layers = {}
    for name, tree in (("minimal", root), ("minimal.standard", more)):
        squashfs = tmp_path / name
        tool("mksquashfs", tree, squashfs, "-quiet", "-no-progress", "-all-root")
        layers[f"casper/{name}.squashfs"] = squashfs.read_bytes()
    cd = make_iso(tmp_path / "ubuntu.iso", layers, "-r", "-J", "-joliet-long")
    with Guest(node, cd) as guest:
        guest.prompt()
        assert guest.sh("cat /root/note").strip() == "from the layer above"
        guest.power_off()
