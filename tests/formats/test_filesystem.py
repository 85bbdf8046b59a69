"""File systems are told by their superblocks, as the tools of each write them."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.filesystem import (
    NO_FILE_SYSTEM,
    PROBE_SIZE,
    ROOT_TYPES,
    check_whole,
    describe,
    detect_filesystem,
    filesystem_size,
)
from tests.support.file_systems import READ_ONLY, make_read_only
from tests.support.programs import tool


def superblock(offset: int, magic: bytes) -> bytes:
    return (bytes(offset) + magic).ljust(PROBE_SIZE, b"\0")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (superblock(0, b"hsqs"), "squashfs"),
        (superblock(32769, b"CD001\1"), "iso9660"),
        (superblock(1024, b"\xe2\xe1\xf5\xe0"), "erofs"),
        (superblock(1024 + 56, b"\x53\xef"), "ext2"),
        (superblock(65600, b"_BHRfS_M"), "btrfs"),
        (superblock(0, b"XFSB"), "xfs"),
        (superblock(0, b"LUKS\xba\xbe\0\2"), "crypto_LUKS"),
        (superblock(3, b"NTFS    "), "ntfs"),
        (superblock(512, b"LABELONE"), "LVM2_member"),
        (superblock((16 << 10) - 10, b"SWAPSPACE2"), "swap"),
        (superblock((64 << 10) - 10, b"SWAPSPACE2"), "swap"),
        (superblock(4086, b"S1SUSPEND\0"), "swsuspend"),
        (superblock(512, b"EFI PART"), "gpt"),
        (bytes(PROBE_SIZE), ""),
        (b"", ""),
        (superblock(1024 + 56, b"\x53\xef")[:2000], ""),
    ],
)
def test_magic_numbers(start: bytes, kind: str) -> None:
    assert detect_filesystem(start) == kind


def mbr(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa" + bytes(PROBE_SIZE - 512)


PARTITION = b"\x80\0\0\0\x83\0\0\0" + struct.pack("<II", 2048, 30720)


def test_a_partition_table_is_told_from_a_boot_sector() -> None:
    assert detect_filesystem(mbr(PARTITION)) == "dos"
    assert detect_filesystem(mbr()) == "", "the signature alone"
    assert detect_filesystem(mbr(b"\x77" + PARTITION[1:])) == "", "code, where entries would be"


def test_what_no_guest_boots_has_words() -> None:
    assert describe("dos") == "a partition table (MBR)"
    assert describe("jbd") == "a journal of an ext file system, and no file system"
    assert describe("ntfs") == "ntfs"
    assert describe("") == "no file system that is known"


def test_an_f2fs_over_several_devices_is_not_called_cut_off() -> None:
    """As `mkfs.f2fs -c b a` of f2fs-tools 1.15 writes it."""
    disk = bytearray(superblock(1024, b"\x10\x20\xf5\xf2"))
    struct.pack_into("<I", disk, 1040, 12)
    struct.pack_into("<Q", disk, 1060, 51200)
    size = 51200 << 11
    assert detect_filesystem(bytes(disk)) == "f2fs"
    with pytest.raises(FormatError, match="cut off"):
        check_whole(bytes(disk), size, "a")
    disk[3225:3226], disk[3293:3294] = b"a", b"b"
    start = bytes(disk)
    check_whole(start, size, "a")
    kind = detect_filesystem(start)
    assert kind in NO_FILE_SYSTEM
    assert describe(kind) == "one of the devices of an f2fs that has several"


MAKERS = {
    "ext2": ("mke2fs", "-q", "-F", "-t", "ext2"),
    "ext3": ("mke2fs", "-q", "-F", "-t", "ext3", "-b", "1024"),
    "ext4": ("mke2fs", "-q", "-F", "-t", "ext4"),
    "jbd": ("mke2fs", "-q", "-F", "-O", "journal_dev"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "xfs": ("mkfs.xfs", "-q"),
    "swap": ("mkswap", "-q"),
}


@pytest.mark.interop
@pytest.mark.parametrize("kind", MAKERS)
def test_what_the_tools_of_the_field_make(tmp_path: Path, kind: str) -> None:
    """Each knows its size, too: that of the device it was made on."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(320 << 20)  # xfs takes no less
    tool(*MAKERS[kind], image)
    with image.open("rb") as file:
        start = file.read(PROBE_SIZE)
    assert detect_filesystem(start) == kind
    assert filesystem_size(start) == (320 << 20 if kind in ROOT_TYPES else None)


@pytest.mark.interop
@pytest.mark.parametrize("kind", READ_ONLY)
def test_a_read_only_file_system_claims_what_its_maker_wrote(tmp_path: Path, kind: str) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(bytes(range(256)) * 4000)
    image = tmp_path / "image"
    make_read_only(kind, tmp_path / "tree", image)
    start, stored = image.read_bytes()[:PROBE_SIZE], image.stat().st_size
    assert detect_filesystem(start) == kind
    claimed = filesystem_size(start)
    assert claimed is not None
    # mksquashfs pads to 4 KiB behind what it claims.
    assert stored - 4096 < claimed <= stored


@given(st.binary(max_size=2100))
def test_any_start_is_told_without_an_error(start: bytes) -> None:
    assert isinstance(detect_filesystem(start), str)
    filesystem_size(start)


@given(st.sampled_from([(0, b"hsqs"), (1024, b"\xe2\xe1\xf5\xe0"), (0, b"XFSB"), (1080, b"S\xef")]),
       st.binary(max_size=2100))  # fmt: skip
def test_the_size_of_junk_is_a_number_or_none(magic: tuple[int, bytes], junk: bytes) -> None:
    offset, word = magic
    start = junk[:offset].ljust(offset, b"\xff") + word + junk[offset:]
    claimed = filesystem_size(start)
    assert claimed is None or claimed >= 0


SIZED = {
    "ext2": (1080, b"S\xef"),
    "squashfs": (0, b"hsqs"),
    "erofs": (1024, b"\xe2\xe1\xf5\xe0"),
    "xfs": (0, b"XFSB"),
    "iso9660": (32769, b"CD001"),
    "btrfs": (65600, b"_BHRfS_M"),
    "vfat": (54, b"FAT16   "),
    "ntfs": (3, b"NTFS    "),
    "exfat": (3, b"EXFAT   "),
    "f2fs": (1024, b"\x10\x20\xf5\xf2"),
}


@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
@pytest.mark.parametrize("kind", SIZED)
def test_a_superblock_that_ends_anywhere_is_no_bug(kind: str, fill: bytes) -> None:
    offset, magic = SIZED[kind]
    for rest in range(200):
        start = fill * offset + magic + fill * rest
        filesystem_size(start)
        with suppress(FormatError):
            check_whole(start, len(start), "image")
