"""Recognising the content of a device by its first bytes: a file system, or something else.

Names are those of blkid(8). Offsets of magic numbers: util-linux, libblkid/src/superblocks; of the
sizes: the kernel's headers (fs/ext4/ext4.h, fs/btrfs/accessors.h, fs/xfs/libxfs/xfs_format.h,
fs/squashfs/squashfs_fs.h, fs/erofs/erofs_fs.h, include/linux/f2fs_fs.h, fs/exfat/exfat_raw.h,
fs/ntfs3/ntfs.h, include/uapi/linux/msdos_fs.h), ISO 9660 (ECMA-119) section 8.4.
"""

from __future__ import annotations

import struct

from p2pcloop.errors import FormatError
from p2pcloop.words import tr

PROBE_SIZE = 68 << 10
"""Bytes from the start of a device that are examined: btrfs has its superblock at 64 KiB."""

READ_ONLY_TYPES = ("iso9660", "squashfs", "erofs")
"""Roots that need a files overlay: these file systems cannot be written."""

ROOT_TYPES = ("ext2", "ext3", "ext4", "btrfs", "xfs", *READ_ONLY_TYPES)
"""File systems that can be a guest's root."""

ROOT_HINT = tr("a root is {root_types}, on the whole device", root_types=", ".join(ROOT_TYPES))

PARTITION_TABLES = ("gpt", "dos")
"""What whole disks begin with."""

NO_FILE_SYSTEM = (
    "jbd",
    "crypto_LUKS",
    "BitLocker",
    "swap",
    "swsuspend",
    "LVM2_member",
    "linux_raid_member",
    "btrfs_member",
    "f2fs_member",
)
"""Content that is no file system, or none that can be read directly."""

_EXT_MAGIC = 0xEF53
_EXT_HAS_JOURNAL = 0x4
_EXT_JOURNAL_DEVICE = 0x8
_EXT_64BIT = 0x80
_EXT4_ONLY = 0x40 | _EXT_64BIT | 0x200
"""Incompatible features extents, 64bit and flex_bg (kernel: fs/ext4/ext4.h)."""

_MAGIC = (
    (0, b"hsqs", "squashfs"),
    (32769, b"CD001", "iso9660"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    (65600, b"_BHRfS_M", "btrfs"),
    (0, b"XFSB", "xfs"),
    (0, b"LUKS\xba\xbe", "crypto_LUKS"),
    (3, b"-FVE-FS-", "BitLocker"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    *(
        ((page << 10) - 10, magic, name)
        for page in (4, 8, 16, 32, 64)
        for magic, name in (
            (b"SWAPSPACE2", "swap"),
            (b"SWAP-SPACE", "swap"),
            (b"S1SUSPEND\0", "swsuspend"),
        )
    ),
    *((sector * 512, b"LABELONE", "LVM2_member") for sector in range(4)),
    (4096, b"\xfc\x4e\x2b\xa9", "linux_raid_member"),
    (0, b"\xfc\x4e\x2b\xa9", "linux_raid_member"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (32768, b"JFS1", "jfs"),
    (65588, b"ReIsEr", "reiserfs"),
    (4120, b"\xc6\x85\x73\xf6", "bcachefs"),
    (1030, b"\x34\x34", "nilfs2"),
    (32, b"NXSB", "apfs"),
    (1024, b"H+", "hfsplus"),
    (1024, b"HX", "hfsplus"),
    (32769, b"BEA01", "udf"),
    (0, b"\x45\x3d\xcd\x28", "cramfs"),
    (0, b"-rom1fs-", "romfs"),
    (82, b"FAT32   ", "vfat"),
    (54, b"FAT16   ", "vfat"),
    (54, b"FAT12   ", "vfat"),
    (512, b"EFI PART", "gpt"),
    (4096, b"EFI PART", "gpt"),
)
"""Offset, bytes, name; the first match counts: a CD may have a partition table in its head."""

_WORDS = {
    "": tr("no file system that is known"),
    "jbd": tr("a journal of an ext file system, and no file system"),
    "crypto_LUKS": tr("an encrypted device (LUKS)"),
    "BitLocker": tr("an encrypted device (BitLocker)"),
    "swap": tr("a swap area"),
    "swsuspend": tr("a swap area with a suspended system"),
    "LVM2_member": tr("a physical volume of LVM"),
    "linux_raid_member": tr("a member of a RAID (md)"),
    "btrfs_member": tr("one of the devices of a btrfs that has several"),
    "f2fs_member": tr("one of the devices of an f2fs that has several"),
    "gpt": tr("a partition table (GPT)"),
    "dos": tr("a partition table (MBR)"),
}

_SIZED = ("ext2", "ext3", "ext4", "btrfs", "xfs", "squashfs")
"""File systems whose superblock always tells their size."""

_BOOT_SIGNATURE = b"\x55\xaa"


def detect_filesystem(start: bytes) -> str:
    """Return the content of a device: one of `ROOT_TYPES`; one that no guest boots from, such as
    "ntfs", "swap", "crypto_LUKS" or "gpt"; or "" for anything else.

    Args:
        start: the first `PROBE_SIZE` bytes of the device, or all of a shorter one.
    """
    for offset, magic, name in _MAGIC:
        if start.startswith(magic, offset):
            return f"{name}_member" if _has_several_devices(name, start) else name
    return _ext_type(start) or ("dos" if _has_partitions(start) else "")


def _has_several_devices(name: str, start: bytes) -> bool:
    match name:
        case "btrfs":
            count = start[65536 + 136 : 65536 + 144]
            return len(count) == 8 and int.from_bytes(count, "little") > 1
        case "f2fs":  # it lists their paths, of 64 bytes, if there is more than one
            second = 1024 + 2201 + 68
            return any(start[second : second + 1])
    return False


def filesystem_size(start: bytes) -> int | None:
    """Return how many bytes of the device its file system claims; None if that is not known.

    Args:
        start: as for `detect_filesystem`.
    """
    try:
        return _claimed(detect_filesystem(start), start)
    except struct.error:  # its start itself is cut off
        return None


def check_whole(start: bytes, size: int, name: str) -> None:
    """Refuse a device that is shorter than its file system.

    Args:
        start: as for `detect_filesystem`.
        size: bytes of the device.
        name: of the device or its file, for the message.

    Raises:
        FormatError: it is cut off, or its superblock is damaged.
    """
    kind = detect_filesystem(start)
    claimed = _claimed_by(kind, start, name)
    if claimed is not None and claimed > size:
        raise FormatError(
            tr(
                "{name} is cut off: its {kind} says that it has {claimed} bytes, and {size} are"
                " here",
                name=name,
                kind=describe(kind),
                claimed=claimed,
                size=size,
            ),
            hint="fetch or copy it again",
        )


def _claimed_by(kind: str, start: bytes, name: str) -> int | None:
    """Bytes that a file system claims, None if that is not known. Errors as of `check_whole`."""
    try:
        claimed = _claimed(kind, start)
    except struct.error as err:
        raise FormatError(
            tr(
                "{name} is cut off: it ends within the superblock of its {kind}",
                name=name,
                kind=describe(kind),
            ),
            hint="fetch or copy it again",
        ) from err
    if kind == "squashfs" and claimed is None:
        raise FormatError(
            tr(
                "{name} is a squashfs of version {version}, which no kernel since 2009 reads",
                name=name,
                version=start[28],
            ),
            hint="unpack it with unsquashfs, and make it again with mksquashfs",
        )
    if kind in _SIZED and not claimed:
        raise FormatError(
            tr(
                "{name} is damaged: the superblock of its {kind} tells no size that can be",
                name=name,
                kind=describe(kind),
            ),
            hint="fetch or copy it again",
        )
    return claimed


def _claimed(name: str, start: bytes) -> int | None:
    match name:
        case "ext2" | "ext3" | "ext4":
            (low,) = struct.unpack_from("<I", start, 1028)
            (shift,) = struct.unpack_from("<I", start, 1048)
            wide = struct.unpack_from("<I", start, 1120)[0] & _EXT_64BIT
            high = struct.unpack_from("<I", start, 1360)[0] if wide else 0
            return None if shift > 6 else (high << 32 | low) * (1024 << shift)
        case "iso9660":
            (blocks,) = struct.unpack_from("<I", start, 32848)
            return int(blocks * struct.unpack_from("<H", start, 32896)[0])
        case "squashfs":
            (major,) = struct.unpack_from("<H", start, 28)
            (used,) = struct.unpack_from("<Q", start, 40)
            return None if 0 < major < 4 else int(used) if major == 4 else 0
        case "erofs":
            (blocks,) = struct.unpack_from("<I", start, 1060)
            return None if start[1036] > 16 else blocks << start[1036]
        case "btrfs":
            return int(struct.unpack_from("<Q", start, 65648)[0])
        case "xfs":
            size, blocks = struct.unpack_from(">IQ", start, 4)
            return int(size * blocks)
    return _claimed_by_others(name, start)


def _claimed_by_others(name: str, start: bytes) -> int | None:
    """The same of file systems that are no root."""
    match name:
        case "vfat":
            (sector,) = struct.unpack_from("<H", start, 11)
            (few,) = struct.unpack_from("<H", start, 19)
            return int(sector * (few or struct.unpack_from("<I", start, 32)[0]))
        case "ntfs":
            (sector,) = struct.unpack_from("<H", start, 11)
            return int(sector * struct.unpack_from("<Q", start, 40)[0])
        case "exfat":
            (sectors,) = struct.unpack_from("<Q", start, 72)
            (shift,) = struct.unpack_from("<B", start, 108)
            return None if shift > 12 else int(sectors << shift)
        case "f2fs":
            (shift,) = struct.unpack_from("<I", start, 1040)
            return None if shift > 16 else int(struct.unpack_from("<Q", start, 1060)[0] << shift)
    return None


def _ext_type(start: bytes) -> str:
    superblock = start[1024:2048]
    if len(superblock) < 1024 or struct.unpack_from("<H", superblock, 56)[0] != _EXT_MAGIC:
        return ""
    compatible, incompatible = struct.unpack_from("<II", superblock, 92)
    if incompatible & _EXT_JOURNAL_DEVICE:
        return "jbd"
    if incompatible & _EXT4_ONLY:
        return "ext4"
    return "ext3" if compatible & _EXT_HAS_JOURNAL else "ext2"


def _has_partitions(start: bytes) -> bool:
    """Whether there is an MBR with a used entry: every boot sector has the signature."""
    entries = [start[at : at + 16] for at in range(446, 510, 16)]
    return (
        start[510:512] == _BOOT_SIGNATURE
        and all(entry[0] in (0, 0x80) for entry in entries)
        and any(entry[4] and entry[12:16] != bytes(4) for entry in entries)
    )


def overlay_mode(filesystem: str) -> str:
    """The default mode in which changes of a device are kept: "block", or "files" if its file
    system cannot be written."""
    return "files" if filesystem in READ_ONLY_TYPES else "block"


def describe(filesystem: str) -> str:
    """The result of `detect_filesystem` as text for people."""
    return _WORDS.get(filesystem, filesystem)
