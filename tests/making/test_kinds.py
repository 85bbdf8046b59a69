"""What a file is taken for: images of all kinds, what is cut off, what is none."""

import os
import struct
from pathlib import Path

import pytest

from p2pcloop.errors import BusyError, FormatError, UsageError
from p2pcloop.image.device import ImageDevice
from p2pcloop.making import local
from p2pcloop.making.local import inspect_file, open_local
from p2pcloop.making.opened import OpenImage
from p2pcloop.making.pack import write_layer
from tests.support.cds import make_iso
from tests.support.disks import BOOT, EFI, LINUX, ROOT, SWAP, make_gpt, make_mbr
from tests.support.file_systems import make_read_only
from tests.support.images import ignore, make_image, read_views, write_cloop_file
from tests.support.programs import tool

pytestmark = pytest.mark.interop

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices are root's")

MIB = 1 << 20


def mke2fs(path: Path, *options: str, size: int = MIB) -> bytes:
    with path.open("wb") as file:
        file.truncate(size)
    tool("mke2fs", "-q", "-t", "ext4", *options, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return mke2fs(tmp_path_factory.mktemp("ext4") / "fs")


def written(path: Path, data: bytes | bytearray) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["ext4", "squashfs", "erofs", "iso9660", "btrfs", "xfs", "vfat"])
def test_a_file_system_that_is_cut_off_is_refused_with_both_numbers(
    tmp_path: Path, kind: str
) -> None:
    tree, path = tmp_path / "tree", tmp_path / "image"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(600_000))
    if kind == "ext4":
        mke2fs(path, "-d", str(tree), size=2 * MIB)
    elif kind in ("btrfs", "xfs"):
        path.touch()
        os.truncate(path, 320 * MIB)
        tool(f"mkfs.{kind}", "-q", path)
    elif kind == "vfat":
        tool("mkfs.vfat", "-C", path, "2048")
    else:
        make_read_only(kind, tree, path)
    size = path.stat().st_size
    assert inspect_file(path).kind == ("iso" if kind == "iso9660" else "raw")
    os.truncate(path, size // 2)
    with pytest.raises(FormatError, match="is cut off") as caught:
        inspect_file(path)
    assert str(path) in str(caught.value)
    assert str(size // 2) in str(caught.value)
    claimed = [int(word) for word in str(caught.value).split() if word.isdigit()]
    assert size // 2 < max(claimed) <= size
    assert caught.value.hint


def test_what_is_cut_off_within_another(tmp_path: Path) -> None:
    """On a CD, in a cloop, in a partition."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(os.urandom(300_000))
    make_read_only("squashfs", tmp_path / "tree", tmp_path / "sq")
    cut = (tmp_path / "sq").read_bytes()[:100_000]
    cd = make_iso(tmp_path / "cd.iso", {"live/filesystem.squashfs": cut}, "-r")
    with pytest.raises(FormatError, match=r"live/filesystem.squashfs on .*cd.iso is cut off"):
        inspect_file(cd)
    cloop = write_cloop_file(tmp_path / "a.cloop", cut)
    with pytest.raises(FormatError, match=r"a.cloop is cut off: its squashfs says"):
        inspect_file(cloop)
    disk = written(tmp_path / "disk", make_gpt({1: (ROOT, cut)}))
    with pytest.raises(FormatError, match=r"partition 1 on .*disk is cut off"):
        inspect_file(disk)


@pytest.mark.parametrize(
    ("place", "value"), [(1028, bytes(4)), (1048, b"\x3c\0\0\0")], ids=["no blocks", "block size"]
)
def test_an_ext_whose_size_cannot_be_is_damaged(
    tmp_path: Path, ext4: bytes, place: int, value: bytes
) -> None:
    path = written(tmp_path / "a", ext4[:place] + value + ext4[place + len(value) :])
    with pytest.raises(FormatError, match="is damaged: the superblock of its ext4") as caught:
        inspect_file(path)
    assert caught.value.hint


@pytest.mark.parametrize("length", [4, 40, 104, 5000])
def test_a_squashfs_that_ends_in_its_superblock(tmp_path: Path, length: int) -> None:
    path = written(tmp_path / "a", b"hsqs".ljust(length, b"\0"))
    with pytest.raises(FormatError, match=r"is (damaged|cut off)"):
        inspect_file(path)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("NTFS    ", {11: ("<H", 512), 40: ("<Q", 4095)}),
        ("EXFAT   ", {72: ("<Q", 4096), 108: ("<B", 9)}),
        ("FAT16   ", {11: ("<H", 512), 19: ("<H", 4096)}),
        ("FAT32   ", {11: ("<H", 4096), 32: ("<I", 512)}),
        ("\x10\x20\xf5\xf2", {1040: ("<I", 12), 1060: ("<Q", 512)}),
    ],
)
def test_what_is_no_root_is_cut_off_too(
    tmp_path: Path, kind: str, fields: dict[int, tuple[str, int]]
) -> None:
    data = bytearray(2 * MIB)
    place = {"FAT16   ": 54, "FAT32   ": 82}.get(kind, 3 if kind.isascii() else 1024)
    data[place : place + len(kind)] = kind.encode("latin-1")
    for at, (form, value) in fields.items():
        struct.pack_into(form, data, at, value)
    path = written(tmp_path / "image", data)
    assert inspect_file(path).kind == "raw"
    os.truncate(path, MIB)
    with pytest.raises(FormatError, match="is cut off"):
        inspect_file(path)


def test_a_squashfs_that_no_kernel_reads_any_more(tmp_path: Path) -> None:
    data = bytearray(b"hsqs".ljust(8192, b"\1"))
    data[28:32] = b"\3\0\1\0"
    with pytest.raises(FormatError, match="squashfs of version 3") as caught:
        inspect_file(written(tmp_path / "old", data))
    assert "mksquashfs" in (caught.value.hint or "")


def test_one_device_of_a_btrfs_with_several(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.touch()
        os.truncate(path, 128 * MIB)
    tool("mkfs.btrfs", "-q", "-d", "single", "-m", "single", paths[0])
    assert not inspect_file(paths[0]).doubt
    tool("mkfs.btrfs", "-q", "-f", "-d", "single", "-m", "single", *paths)
    assert inspect_file(paths[0]).doubt == "it is one of the devices of a btrfs that has several"


def test_a_journal_is_no_file_system(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.touch()
    os.truncate(path, 4 * MIB)
    tool("mke2fs", "-q", "-O", "journal_dev", path)
    assert inspect_file(path).doubt == "it is a journal of an ext file system, and no file system"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"root:x:0:0:root:/root:/bin/bash\n" * 50, "is no disk image: it is text"),
        (b"hello", "is no disk image: it is text"),
        (bytes(257) + b"ustar\0" + bytes(9000), "is no disk image: it is a tar archive"),
    ],
)
def test_what_is_no_image(tmp_path: Path, data: bytes, message: str) -> None:
    path = written(tmp_path / "file", data)
    with pytest.raises(UsageError, match=message) as caught:
        inspect_file(path)
    assert caught.value.hint
    assert inspect_file(path, raw=True).kind == "raw"


@pytest.mark.parametrize("data", [make_image(50_000, 2), b"\1\2\3\4\5", bytes(5000)])
def test_what_may_be_no_image(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path / "file", data)
    assert inspect_file(path).doubt
    assert not inspect_file(path, raw=True).doubt


def test_the_partition_with_the_root(tmp_path: Path, ext4: bytes) -> None:
    boot = mke2fs(tmp_path / "boot", "-M", "/boot")
    labelled = mke2fs(tmp_path / "labelled", "-L", "boot")
    other = b"o" * MIB
    for number, disk in (
        (1, make_gpt({1: (ROOT, ext4), 14: (LINUX, other), 15: (EFI, other)})),  # Debian's
        (1, make_gpt({1: (LINUX, ext4), 16: (BOOT, ext4)})),  # Ubuntu's
        (3, make_gpt({1: (EFI, other), 2: (LINUX, boot), 3: (LINUX, ext4), 4: (SWAP, ext4)})),
        (2, make_gpt({1: (LINUX, ext4), 2: (ROOT, ext4)}, sector=4096)),
        (2, make_mbr({1: (0x83, labelled), 2: (0x83, ext4)})),
        (6, make_mbr({1: (0xEF, other), 5: (0x82, other), 6: (0x83, ext4)})),
    ):
        path = written(tmp_path / "disk", disk)
        file = inspect_file(path)
        assert (file.kind, file.parts[0].name) == ("disk", f"partition {number}")
        with OpenImage(path, file.parts) as image:
            assert image.read(0, image.size) == ext4


def test_a_partition_that_is_asked_for(tmp_path: Path, ext4: bytes) -> None:
    path = written(tmp_path / "disk", make_mbr({1: (0x83, ext4), 2: (0x83, b"2" * MIB + ext4)}))
    assert inspect_file(path).parts[0].name == "partition 1"
    device = ImageDevice(open_local(inspect_file(path, partition=2), None, ignore))
    assert read_views(device, 0, [MIB]) == b"2" * MIB
    device.close()
    assert inspect_file(path, raw=True).parts[0].name == ""
    for number in (3, 200):
        with pytest.raises(UsageError, match=f"has no partition {number}: 1 .ext4") as caught:
            inspect_file(path, partition=number)
        assert caught.value.hint
    plain = written(tmp_path / "plain", ext4)
    with pytest.raises(UsageError, match="has no partitions"):
        inspect_file(plain, partition=1)
    with pytest.raises(UsageError, match="the whole disk"):
        inspect_file(path, partition=1, raw=True)


def test_partitions_that_could_all_be_it_are_listed(tmp_path: Path, ext4: bytes) -> None:
    path = written(tmp_path / "disk", make_gpt({1: (LINUX, ext4), 2: (LINUX, ext4)}))
    with pytest.raises(UsageError, match=r"several partitions .* 1 \(ext4, 1.0 MB\); 2 ") as caught:
        inspect_file(path)
    assert "--partition" in (caught.value.hint or "")
    # Of a root in LVM or LUKS the file system beside it is /boot or /home, whatever it says.
    lvm, luks = bytes(512) + b"LABELONE" + bytes(MIB), b"LUKS\xba\xbe" + bytes(MIB)
    for closed, kind in ((lvm, LINUX), (luks, LINUX), (luks, ROOT)):
        path.write_bytes(make_gpt({1: (LINUX, ext4), 2: (kind, closed)}))
        with pytest.raises(UsageError, match="no partition that is known to be a root") as caught:
            inspect_file(path)
        assert ("vgchange" in (caught.value.hint or "")) == (closed == lvm)
        assert inspect_file(path, partition=1).parts[0].name == "partition 1"
    path.write_bytes(make_gpt({1: (ROOT, ext4), 2: (LINUX, lvm)}))
    assert inspect_file(path).parts[0].name == "partition 1"
    path.write_bytes(make_gpt({1: (EFI, b"e" * MIB), 2: (SWAP, b"s" * MIB)}))
    with pytest.raises(UsageError, match=r"no partition that .* root .* 1 .*EFI.*; 2 .*swap"):
        inspect_file(path)


def test_a_partition_is_packed_and_is_its_content_alone(tmp_path: Path, ext4: bytes) -> None:
    path = written(tmp_path / "disk", make_gpt({1: (ROOT, ext4)}))
    header, remark = write_layer(inspect_file(path), tmp_path / "a", ignore)
    alone, _ = write_layer(inspect_file(written(tmp_path / "b.img", ext4)), tmp_path / "b", ignore)
    assert (remark, header.layer_id) == ("", alone.layer_id)


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse image of 3 TiB is seeded in the time that its data takes."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 3 << 40)
    tool("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard", path, "1G")
    with path.open("r+b") as opened:
        opened.seek((2 << 40) + 12345)
        opened.write(b"far away")
    read, real = 0, os.pread

    def count(fd: int, length: int, offset: int) -> bytes:
        nonlocal read
        read += length
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", count)
    file = inspect_file(path)
    header, _ = write_layer(file, tmp_path / "staging", ignore)
    assert header.image_size == 3 << 40
    assert read < 200 * MIB
    device = ImageDevice(open_local(file, None, ignore))
    assert read_views(device, (2 << 40) + 12345, [8]) == b"far away"
    device.close()


@needs_root
def test_a_device_that_is_mounted_for_writing_is_refused(tmp_path: Path, ext4: bytes) -> None:
    """What is read while a program writes it is an image that there never was."""
    device = Path(tool("losetup", "-f", "--show", written(tmp_path / "backing", ext4)).strip())
    folder = tmp_path / "mounted"
    folder.mkdir()
    try:
        tool("mount", device, folder)
        try:
            with pytest.raises(BusyError, match=f"is mounted at {folder}") as caught:
                inspect_file(device)
            assert caught.value.hint
            tool("mount", "-o", "remount,ro", device, folder)
            assert inspect_file(device).kind == "raw"
        finally:
            tool("umount", folder)
    finally:
        tool("losetup", "-d", device)


def test_mount_points_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are other users' choice."""
    table = tmp_path / "mountinfo"
    names = "a\vb", "a\rb", "a\x85b", "a\u2028b", "a\x1cb", "a\\040b", "caf\udce9"
    lines = [f"36 35 98:0 / /mnt/{name} rw - fuse.x x rw,user_id=1\n" for name in names]
    table.write_bytes(os.fsencode("".join([*lines, "37 35 1:3 / /here rw - ext4 /dev/x rw\n"])))
    monkeypatch.setattr(local, "_MOUNTS", table)
    assert local._written_at(Path("/dev/null")) == "/here"  # of that number
    assert local._written_at(Path("/dev/full")) == ""


@needs_root
def test_a_block_device_is_copied(tmp_path: Path, ext4: bytes) -> None:
    backing = written(tmp_path / "backing", ext4)
    device = Path(tool("losetup", "-f", "--show", backing).strip())
    try:
        file = inspect_file(device)
        assert (file.kind, file.size, file.can_stay) == ("raw", len(ext4), False)
        header, _ = write_layer(file, tmp_path / "a", ignore)
        opened = ImageDevice(open_local(file, tmp_path / "cache", ignore))
        assert read_views(opened, 0, [len(ext4)]) == ext4
        opened.close()
    finally:
        tool("losetup", "-d", device)
    assert not (tmp_path / "cache").exists()  # what was in it may be another the next time
    alone, _ = write_layer(inspect_file(backing), tmp_path / "b", ignore)
    assert header.layer_id == alone.layer_id
    cd = make_iso(tmp_path / "cd.iso", {"KNOPPIX/KNOPPIX": ext4}, "-r")
    device = Path(tool("losetup", "-f", "--show", cd).strip())
    try:
        write_layer(inspect_file(device), tmp_path / "c", ignore)
    finally:
        tool("losetup", "-d", device)
    assert not next((tmp_path / "c").glob("data/*/pack")).is_symlink()
