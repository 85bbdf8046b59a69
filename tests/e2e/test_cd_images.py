"""CD images go from node to node: what is on them arrives; who has the CD keeps no copy of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.formats.boot_parameters import Root
from p2pcloop.formats.manifest import Manifest, open_manifest
from p2pcloop.making.opened import ALIGNMENT
from tests.support.cds import make_iso
from tests.support.images import make_image, padded
from tests.support.programs import Guest, Node, Nodes, tool
from tools.knoppix_cd import fill_tiny, make_cd, make_root

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file system of a tiny KNOPPIX."""
    folder = tmp_path_factory.mktemp("root")
    fill_tiny(folder / "files")
    make_root(folder / "files", folder / "root.iso")
    return folder / "root.iso"


def to_cloop(image: Path) -> Path:
    cloop = image.with_suffix(".cloop")
    tool("create_compressed_fs", "-q", "-B", "65536", "-L", "1", image, cloop)
    return cloop


def room_of(folder: Path) -> int:
    """Bytes of a node's torrents, without what links lead to."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in files)


def fetched(seeder: Node, reader: Node, link: str, out: Path) -> tuple[bytes, Manifest]:
    """The device as it is on another node, once all of it is there and the first one is gone."""
    reader.run("fetch", link)
    seeder.run("daemon", "stop")
    reader.run("export", link, out)
    assert reader.json("verify", link)["bad"] == 0
    [manifest] = reader.home.manifests.iterdir()
    return out.read_bytes(), open_manifest(manifest.read_bytes()).manifest


def test_a_knoppix(nodes: Nodes, root: Path, tmp_path: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    cd = tmp_path / "KNOPPIX_V3.iso"
    make_cd(cd, [to_cloop(root)])
    seeded = seeder.json("seed", cd)
    assert seeded["name"].endswith("/knoppix_v3")
    assert (seeded["in_place"], seeded["images"]) == (True, ["KNOPPIX/KNOPPIX"])
    assert (seeded["stored"], seeded["filesystem"]) == (cd.stat().st_size, "iso9660")
    assert room_of(seeder.home.torrents) < 50_000
    device, manifest = fetched(seeder, reader, seeded["link"], tmp_path / "out.img")
    assert device == padded(root.read_bytes(), 65536)
    assert manifest.boot.roots == ()


def test_a_knoppix_of_two_images(nodes: Nodes, root: Path, tmp_path: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    more = tmp_path / "more.iso"
    make_iso(more, {"usr/share/more": make_image(200_000)}, "-R")
    cd = tmp_path / "cd.iso"
    make_cd(cd, [to_cloop(root), to_cloop(more)])
    said = seeder.run("seed", cd, "--name", "two").out
    assert "from that CD: KNOPPIX/KNOPPIX, KNOPPIX/KNOPPIX2" in said
    link = said.split("'")[1]
    device, manifest = fetched(seeder, reader, link, tmp_path / "out.img")
    first, second = padded(root.read_bytes(), 65536), padded(more.read_bytes(), 65536)
    start = len(padded(first, ALIGNMENT))
    assert manifest.boot.roots == (Root(0, len(first)), Root(start, len(second)))
    assert device == padded(first, ALIGNMENT) + second


def test_a_knoppix_of_two_images_boots_from_a_peer(
    nodes: Nodes, root: Path, tmp_path: Path
) -> None:
    """The first one is a cloop V4.0, the second a V2.0 that has a file above the first one's."""
    seeder, reader = nodes.make(), nodes.make()
    first, more = tmp_path / "v4.cloop", tmp_path / "more.iso"
    seeder.run("export", root, first, "--codec", "lz4")
    files = {"usr/share/more": b"more", "etc/skel/Desktop/README": b"of the second image"}
    make_iso(more, files, "-R")
    cd = tmp_path / "cd.iso"
    make_cd(cd, [first, to_cloop(more)])
    assert "cloop V4.0" in seeder.run("info", cd).out
    link = seeder.json("seed", cd, "--name", "two")["link"]
    overlay = tmp_path / "mine.delta"
    boot = (reader, link, "--overlay", overlay)
    assert reader.run("boot", link, "--overlay-mode", "block", code=2).err
    with Guest(*boot) as guest:
        guest.prompt()
        assert guest.sh("cat /var/log/knoppix-autoconfig") == "knoppix-autoconfig: ready\n"
        assert guest.sh("cat /usr/share/more") == "more"
        assert guest.sh("cat /home/knoppix/Desktop/README") == "of the second image"
        guest.sh("echo mine > /home/knoppix/mine && sync")
        guest.power_off()
    with Guest(*boot) as guest:
        guest.prompt()
        assert guest.sh("cat /ramdisk/home/knoppix/mine") == "mine\n"
        guest.kill()


def test_a_live_cd_and_one_that_is_nothing_of_the_kind(nodes: Nodes, tmp_path: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    (tmp_path / "files").mkdir()
    (tmp_path / "files/data").write_bytes(make_image(300_000))
    squashfs = tmp_path / "filesystem.squashfs"
    tool("mksquashfs", tmp_path / "files", squashfs, "-quiet", "-no-progress")
    content = squashfs.read_bytes()
    live = make_iso(tmp_path / "live.iso", {"live/filesystem.squashfs": content}, "-r")
    plain = make_iso(tmp_path / "plain.iso", {"readme": make_image(100_000)}, "-J")
    seeded = {cd: seeder.json("seed", cd) for cd in (live, plain)}
    assert [seed["filesystem"] for seed in seeded.values()] == ["squashfs", "iso9660"]
    assert [seed["images"] for seed in seeded.values()] == [["live/filesystem.squashfs"], [""]]
    assert all(seed["in_place"] for seed in seeded.values())
    assert room_of(seeder.home.torrents) < 50_000
    for cd, expected in ((live, content), (plain, plain.read_bytes())):
        reader.run("export", seeded[cd]["link"], tmp_path / "out.img", "--force")
        assert (tmp_path / "out.img").read_bytes() == expected
