"""What is wrong or rare on a CD beside the image does not matter; links to the image do."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError
from tests.support.cds import NAMES, block_of, make_iso, make_iso_of, read_cd
from tests.support.programs import tool

pytestmark = pytest.mark.interop

IMAGE = random.Random(1).randbytes(30_000)
BOOTS = ("-no-emul-boot", "-boot-load-size", "4", "-b", "isolinux.bin", "-c", "boot.cat")


def image_of(path: Path) -> bytes:
    [image] = read_cd(path).images
    with path.open("rb") as file:
        return image.extents.pread(file.fileno(), image.extents.size, 0)


def tree_with_image(folder: Path) -> Path:
    (folder / "KNOPPIX").mkdir(parents=True)
    (folder / "KNOPPIX/KNOPPIX").write_bytes(IMAGE)
    return folder


def test_zisofs_beside_the_image(tmp_path: Path) -> None:
    tree = tree_with_image(tmp_path / "tree")
    (tree / "docs.txt").write_bytes(b"words " * 20_000)
    out = tmp_path / "cd.iso"
    tool("xorriso", "-outdev", out, "-map", tree, "/", "-set_filter", "--zisofs", "/docs.txt", "--")
    assert b"ZF" in out.read_bytes()
    assert image_of(out) == IMAGE


def test_an_image_that_is_compressed_by_zisofs_is_refused_by_name(tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "cd.iso"
    (tree / "live").mkdir(parents=True)
    (tree / "live/filesystem.squashfs").write_bytes(b"words " * 20_000)
    tool(
        *("xorriso", "-outdev", out, "-map", tree, "/", "-set_filter", "--zisofs"),
        *("/live/filesystem.squashfs", "--"),
    )
    with pytest.raises(
        FormatError, match=r"live/filesystem\.squashfs is compressed by zisofs"
    ) as caught:
        read_cd(out)
    assert "mount it" in (caught.value.hint or "")  # to fetch it again would change nothing


def without_extension_reference(cd: bytearray) -> None:
    """ER says which extensions are used (SUSP, 5.5); some programs leave it away."""
    at = cd.index(b"ER", 32768)
    cd[at : at + 2] = b"PD"


def wrong_file_set_tag(cd: bytearray) -> None:
    """The file set descriptor of UDF (ECMA-167, 4/14.1) has the tag 256."""
    for at in range(65536, len(cd), 2048):
        if cd[at : at + 4] == b"\0\1\2\0":
            cd[at] = 77
            return
    raise AssertionError("no file set descriptor")


def junk_behind_the_boot_catalog(cd: bytearray) -> None:
    at = block_of(cd, b"BOOT.CAT;1") * 2048
    cd[at + 64 : at + 2048] = random.Random(2).randbytes(1984)


def odd_partitions(cd: bytearray) -> None:
    cd[0:446] = random.Random(3).randbytes(446)
    cd[446:510] = random.Random(4).randbytes(64)
    cd[510:512] = b"\x55\xaa"


def path_tables_of_noise(cd: bytearray) -> None:
    little, big = cd[32768 + 140 : 32768 + 144], cd[32768 + 148 : 32768 + 152]
    for block in (int.from_bytes(little, "little"), int.from_bytes(big, "big")):
        at = block * 2048
        cd[at : at + 2048] = random.Random(5).randbytes(2048)


def badly_written_link(cd: bytearray) -> None:
    """Its SL field says that its first component is longer than the field."""
    at = cd.index(b"SL", 32768)
    cd[at + 6] = 200


def another_folder_of_noise(cd: bytearray) -> None:
    at = block_of(cd, b"POOL") * 2048
    cd[at : at + 2048] = random.Random(6).randbytes(2048)


@pytest.mark.parametrize(
    "change",
    [
        without_extension_reference,
        wrong_file_set_tag,
        junk_behind_the_boot_catalog,
        odd_partitions,
        path_tables_of_noise,
        badly_written_link,
        another_folder_of_noise,
    ],
)
def test_what_is_wrong_elsewhere(tmp_path: Path, change: Callable[[bytearray], None]) -> None:
    tree = tree_with_image(tmp_path / "tree")
    (tree / "isolinux.bin").write_bytes(bytes(4096))
    (tree / "link").symlink_to("KNOPPIX/somewhere")
    (tree / "pool").mkdir()
    (tree / "pool/file").write_bytes(b"a")
    path = make_iso_of(tree, tmp_path / "cd.iso", "-r", "-udf", *BOOTS)
    cd = bytearray(path.read_bytes())
    change(cd)
    path.write_bytes(cd)
    assert image_of(path) == IMAGE
    assert read_cd(path).names == "Rock Ridge"


@pytest.mark.parametrize("names", NAMES)
def test_many_files_elsewhere(tmp_path: Path, names: str) -> None:
    files = {f"pool/{n:04}-{'long' * 10}.deb": b"" for n in range(4000)}
    path = make_iso(tmp_path / "cd.iso", files | {"KNOPPIX/KNOPPIX": IMAGE}, *NAMES[names])
    assert image_of(path) == IMAGE


@pytest.mark.parametrize("target", ["image.cloop", "../images/image.cloop", "/images/image.cloop"])
def test_a_symbolic_link_is_followed(tmp_path: Path, target: str) -> None:
    tree = tmp_path / "tree"
    for folder in ("KNOPPIX", "images"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "image.cloop").write_bytes(IMAGE)
    (tree / "KNOPPIX/KNOPPIX").symlink_to(target)
    path = make_iso_of(tree, tmp_path / "cd.iso", "-R")
    assert image_of(path) == IMAGE
    assert [image.name for image in read_cd(path).images] == ["KNOPPIX/KNOPPIX"]


def test_a_folder_that_is_a_symbolic_link(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "data").mkdir(parents=True)
    (tree / "data/KNOPPIX").write_bytes(IMAGE)
    (tree / "KNOPPIX").symlink_to("data")
    assert image_of(make_iso_of(tree, tmp_path / "cd.iso", "-R")) == IMAGE


@pytest.mark.parametrize("target", ["nowhere", "KNOPPIX", "../../.."])
def test_a_link_that_leads_to_no_file_is_told(tmp_path: Path, target: str) -> None:
    tree = tmp_path / "tree"
    (tree / "KNOPPIX").mkdir(parents=True)
    (tree / "KNOPPIX/KNOPPIX").symlink_to(target)
    path = make_iso_of(tree, tmp_path / "cd.iso", "-R")
    if target == "../../..":
        assert read_cd(path).images == ()  # a folder, as any other
        return
    with pytest.raises(FormatError, match=f"KNOPPIX/KNOPPIX is a symbolic link to {target}"):
        read_cd(path)


def test_two_names_of_one_file_are_taken_once(tmp_path: Path) -> None:
    tree = tree_with_image(tmp_path / "tree")
    (tree / "KNOPPIX/KNOPPIX2").hardlink_to(tree / "KNOPPIX/KNOPPIX")
    (tree / "KNOPPIX/KNOPPIX3").symlink_to("KNOPPIX")
    path = make_iso_of(tree, tmp_path / "cd.iso", "-R", "-cache-inodes")
    assert image_of(path) == IMAGE
