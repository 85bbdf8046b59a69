"""The layouts of live CDs: which files on them are the image, in which order."""

from pathlib import Path

import pytest

from p2pcloop.errors import FormatError
from tests.support.cds import NAMES, make_iso, read_cd

pytestmark = pytest.mark.interop


def images_of(tmp_path: Path, *names: str, listed: str = "") -> list[str]:
    """Make a CD with these files, and tell what is taken of it."""
    files = {name: name.encode() * 100 for name in names}
    if listed:
        files["live/filesystem.module"] = listed.encode()
    found = read_cd(make_iso(tmp_path / "cd.iso", files, "-r", "-J", "-joliet-long"))
    return [image.name for image in found.images]


@pytest.mark.parametrize(
    "name",
    [
        "LiveOS/squashfs.img",
        "LiveOS/rootfs.img",
        "arch/x86_64/airootfs.sfs",
        "arch/x86_64/airootfs.erofs",
        "antiX/linuxfs",
        "live/filesystem.erofs",
        "live/filesystem.squashfs",
        "casper/filesystem.squashfs",
        "KNOPPIX/KNOPPIX",
    ],
)
def test_one_image(tmp_path: Path, name: str) -> None:
    assert images_of(tmp_path, name, "boot/vmlinuz", "pool/a.deb") == [name]


def test_the_architecture_that_runs_here(tmp_path: Path) -> None:
    names = "arch/i686/airootfs.sfs", "arch/x86_64/airootfs.sfs"
    assert images_of(tmp_path, *names) == ["arch/x86_64/airootfs.sfs"]


def casper(tmp_path: Path, names: str) -> list[str]:
    found = images_of(tmp_path, *(f"casper/{name}.squashfs" for name in names.split()))
    return [name.removeprefix("casper/").removesuffix(".squashfs") for name in found]


@pytest.mark.parametrize(
    ("there", "joined"),
    [
        ("minimal minimal.standard", "minimal minimal.standard"),
        ("fs fs.de", "fs"),
        ("minimal minimal.de minimal.pt-br minimal.standard", "minimal minimal.standard"),
        (
            # Ubuntu 24.04, desktop
            "minimal minimal.de minimal.fips minimal.standard minimal.standard.live",
            "minimal minimal.standard minimal.standard.live",
        ),
        (
            # Ubuntu 24.04, server
            "base base.server base.server.inst base.server.inst.generic base.server.inst.hwe",
            "base base.server base.server.inst",
        ),
        ("minimal minimal.standard.live", "minimal"),  # what it lies on is not there
        ("filesystem installer", "filesystem installer"),  # Ubuntu 18.04, server: all, by name
    ],
)
def test_layers_of_ubuntu(tmp_path: Path, there: str, joined: str) -> None:
    assert casper(tmp_path, there) == joined.split()


def test_layers_that_are_left_out_are_told(tmp_path: Path) -> None:
    names = ["casper/a.squashfs", "casper/a.b.live.squashfs", "casper/a.b.squashfs"]
    files = {name: name.encode() for name in [*names, "casper/a.de.squashfs"]}
    found = read_cd(make_iso(tmp_path / "cd.iso", files, "-r"))
    assert found.notes == ("left out: casper/a.de.squashfs",)


LIVE = ("live/b.squashfs", "live/a.squashfs", "live/filesystem.squashfs")


def test_debian_joins_what_its_list_says_in_that_order(tmp_path: Path) -> None:
    listed = "filesystem.squashfs\na.squashfs\n"
    expected = ["live/filesystem.squashfs", "live/a.squashfs"]
    assert images_of(tmp_path, *LIVE, listed=listed) == expected
    found = read_cd(tmp_path / "cd.iso")
    assert found.notes == ("left out: live/b.squashfs",)


def test_debian_joins_all_without_a_list(tmp_path: Path) -> None:
    assert images_of(tmp_path, *LIVE) == sorted(LIVE)


def test_a_list_with_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"filesystem\.module lists more\.squashfs"):
        images_of(tmp_path, *LIVE, listed="filesystem.squashfs more.squashfs")


@pytest.mark.parametrize("names", NAMES)
def test_what_looks_like_images_elsewhere_is_named(tmp_path: Path, names: str) -> None:
    squashfs = b"hsqs".ljust(5000, b"\1")
    files = {"porteus/base/core.xzm": squashfs, "slax/a.sb": squashfs, "x.sfs": b"no squashfs"}
    found = read_cd(make_iso(tmp_path / "cd.iso", files, *NAMES[names]))
    assert found.images == ()
    assert sorted(name.lower() for name in found.unknown) == ["porteus/base/core.xzm", "slax/a.sb"]


@pytest.mark.parametrize("name", ["KNOPPIX64/KNOPPIX", "live/filesystem.img", "base/morphix-base"])
def test_what_takes_most_of_a_cd_is_named_whatever_its_name(tmp_path: Path, name: str) -> None:
    files = {name: b"hsqs".ljust(900_000, b"\1"), "boot/vmlinuz": bytes(9000)}
    found = read_cd(make_iso(tmp_path / "cd.iso", files, "-r"))
    assert (found.images, found.unknown) == ((), (name,))


def test_a_cd_of_files_has_none(tmp_path: Path) -> None:
    found = read_cd(make_iso(tmp_path / "cd.iso", {"a/b": b"c", "live/x": b""}, "-r"))
    assert (found.images, found.unknown) == ((), ())
    assert "no guest boots from it" in found.notes[0]


def test_a_cd_that_is_a_root_itself(tmp_path: Path) -> None:
    found = read_cd(make_iso(tmp_path / "cd.iso", {"sbin/init": b"#!"}, "-r"))
    assert (found.images, found.unknown, found.notes) == ((), (), ())
