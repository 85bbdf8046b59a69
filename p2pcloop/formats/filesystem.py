"""Tells the file system on a device by its superblock."""

from __future__ import annotations

import struct

PROBE_SIZE = 64 << 10
"""Bytes from the start of a device that are looked at."""

READ_ONLY_TYPES = ("iso9660", "squashfs", "erofs")
"""What a guest can have as its root only below a files overlay: nothing can write to it."""

ROOT_TYPES = ("ext2", "ext3", "ext4", *READ_ONLY_TYPES)
"""What a guest can have as its root."""

ROOT_HINT = f"a root is {', '.join(ROOT_TYPES)}, on the whole device"

_EXT_MAGIC = 0xEF53
_EXT_HAS_JOURNAL = 0x4
_EXT4_ONLY = 0x40 | 0x80 | 0x200
"""Incompatible features extents, 64bit and flex_bg (kernel: fs/ext4/ext4.h)."""


def detect_filesystem(start: bytes) -> str:
    """Return "ext2", "ext3", "ext4", "iso9660", "squashfs", "erofs" or "" for anything else.

    Args:
        start: the first `PROBE_SIZE` bytes of the device, or all of a shorter one.
    """
    if start[:4] == b"hsqs":
        return "squashfs"
    if start[32769:32774] == b"CD001":
        return "iso9660"
    if start[1024:1028] == b"\xe2\xe1\xf5\xe0":
        return "erofs"
    superblock = start[1024:2048]
    if len(superblock) < 1024 or struct.unpack_from("<H", superblock, 56)[0] != _EXT_MAGIC:
        return ""
    compatible, incompatible = struct.unpack_from("<II", superblock, 92)
    if incompatible & _EXT4_ONLY:
        return "ext4"
    return "ext3" if compatible & _EXT_HAS_JOURNAL else "ext2"


def overlay_mode(filesystem: str) -> str:
    """Tell how changes of a device are kept unless the user says otherwise: by the "block", or as
    "files" where its file system cannot be written."""
    return "files" if filesystem in READ_ONLY_TYPES else "block"


def describe(filesystem: str) -> str:
    """Write what `detect_filesystem` returned for people."""
    return filesystem or "no file system that is known"
