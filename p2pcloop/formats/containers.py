"""Recognising files that hold a disk image in another form, or none, by their bytes.

Sources: QEMU (docs/interop/qcow2.rst, block/vmdk.c, block/vdi.c), VMware "Virtual Disk Format 5.0",
Microsoft "Virtual Hard Disk Image Format Specification" and [MS-VHDX]; RFC 1952, RFC 8878, the .xz
and bzip2 formats; file(1) for the rest.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from p2pcloop.errors import FormatError, UsageError
from p2pcloop.words import tr

DISK_FORMATS = {
    "qcow2": "qcow2",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhd": "vpc",
    "vhdx": "vhdx",
}
"""Disk images of virtual machines, with the names of QEMU's drivers for them."""

COMPRESSED = ("gz", "xz", "zst", "bz2")

CONTAINERS = (*DISK_FORMATS, *COMPRESSED)

TAIL_SIZE = 512
"""Bytes at the end of a file that are examined."""

Read = Callable[[int, int], bytes]
"""Returns the bytes at an offset, of a length; fewer at the end of the file."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAGIC = (
    (b"QFI\xfb\0\0\0\2", "qcow2"),
    (b"QFI\xfb\0\0\0\3", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"conectix", "vhd"),
    (b"vhdxfile", "vhdx"),
    (b"\x1f\x8b\x08", "gz"),
    (b"\xfd7zXZ\0", "xz"),
    (_ZSTD_MAGIC, "zst"),
    *((b"BZh%d1AY&SY" % level, "bz2") for level in range(1, 10)),
)
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18(.{4})", re.DOTALL)
"""A frame that decoders of zstd and lz4 skip, with its length (RFC 8878, 3.1.2)."""

_VDI_MAGIC = struct.pack("<I", 0xBEDA107F)
_VHD_COOKIE = b"conectix"

_OTHERS = (
    (257, b"ustar", tr("a tar archive")),
    (0, b"PK\3\4", tr("a zip archive")),
    (0, b"PK\5\6", tr("a zip archive")),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", tr("a rar archive")),
    (0, b"MSCF", tr("a cabinet archive")),
    (0, b"MSWIM\0\0\0", tr("a Windows image (WIM)")),
    (0, b"WLPWM\0\0\0", tr("a Windows image (WIM)")),
    (2, b"-lh", tr("an LHA archive")),
    (0, b"\x60\xea", tr("an ARJ archive")),
    (7, b"**ACE**", tr("an ACE archive")),
    (0, b"!<arch>\n", tr("a Debian package, or another ar archive")),
    (0, b"\xed\xab\xee\xdb", tr("an RPM package")),
    (0, b"xar!", tr("a xar archive")),
    (0, b"070701", tr("a cpio archive")),
    (0, b"070702", tr("a cpio archive")),
    (0, b"070707", tr("a cpio archive")),
    (0, b"\xc7\x71", tr("a cpio archive")),
    (0, b"\x71\xc7", tr("a cpio archive")),
    (0, b"\x7fELF", tr("a program (ELF)")),
    (514, b"HdrS", tr("a Linux kernel")),
    (0, b"MZ", tr("a program (for DOS, Windows or EFI)")),
    (0, b"ANDROID!", tr("a boot image of Android, a kernel and an initramfs")),
    (0, b"\x27\x05\x19\x56", tr("an image of U-Boot")),
    (0, b"\xd0\x0d\xfe\xed", tr("a device tree, or an image of U-Boot")),
    (0, b"UBI#", tr("flash content (UBI)")),
    (0, b"\x31\x18\x10\x06", tr("flash content (UBIFS)")),
    (0, b"\x85\x19", tr("flash content (JFFS2)")),
    (0, b"ID3", tr("a recording (MP3)")),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", tr("a document of Microsoft Office")),
    (0, b"%PDF-", tr("a PDF document")),
    (0, b"\x89PNG\r\n", tr("a picture (PNG)")),
    (0, b"\xff\xd8\xff", tr("a picture (JPEG)")),
    (0, b"GIF8", tr("a picture (GIF)")),
    (0, b"SQLite format 3\0", tr("a database (SQLite)")),
    (4, b"ftyp", "a film"),
    (0, b"\x1aE\xdf\xa3", tr("a film (Matroska)")),
    (0, b"OggS", tr("a recording (Ogg)")),
    (0, b"\x04\x22\x4d\x18", tr("compressed by lz4")),
    (0, b"\x02\x21\x4c\x18", tr("compressed by lz4")),
    (0, b"LRZI", tr("compressed by lrzip")),
    (0, b"7kSt", tr("a zpaq archive")),
    (0, b"LZIP", tr("compressed by lzip")),
    (0, b"\x89LZO\0\r\n\x1a\n", tr("compressed by lzop")),
    (0, b"\x5d\0\0", tr("compressed by lzma")),
    (0, b"\x1f\x9d", tr("compressed by compress")),
    (0, b"d8:announce", tr("a torrent file")),
    (0, b"d4:info", tr("a torrent file")),
    (0, b"QFI\xfb", tr("a qcow image of an old version")),
    (0, b"QED\0", tr("a QED disk image")),
    (0, b"COWD", tr("a part of a VMware disk image")),
    (0, b"WithoutFreeSpace", tr("a Parallels disk image")),
    (0, b"WithouFreSpacExt", tr("a Parallels disk image")),
    (0, b"Bochs Virtual HD Image", tr("a Bochs disk image")),
    (0, b"EVF\x09\x0d\x0a\xff\0", tr("a forensic disk image (EWF)")),
    (0, b"AFF10\r\n", tr("a forensic disk image (AFF)")),
    (0, b"\x3a\xff\x26\xed", tr("an Android sparse image")),
    (0, b"sprs", tr("a sparse image of macOS")),
    (0, b"encrcdsa", tr("an encrypted disk image of macOS (dmg)")),
    (0, b"cdsaencr", tr("an encrypted disk image of macOS (dmg)")),
    (0, b"MComprHD", tr("a compressed disk of MAME (CHD)")),
    (0, b"CISO", tr("a compressed CD (CSO)")),
    (0, b"IsZ!", tr("a compressed CD (ISZ)")),
    (0, b"DAA\0", tr("a compressed CD (DAA)")),
    (0, b"ECM\0", tr("a compressed CD (ECM)")),
    (0, b"MEDIA DESCRIPTOR", tr("the description of a CD (MDS), without its content")),
    (0, b"JigsawDownload", tr("a template of jigdo")),
    (0, b"zsync: ", tr("a file of zsync, which only tells where the image is")),
    (0, b"partclone-image", tr("a copy of a partition (partclone)")),
    (0, b"PaRtImAgE-VoLuMe", tr("a copy of a partition (partimage)")),
    (0, b"\0ntfsclone-image", tr("a copy of a partition (ntfsclone)")),
    (0, b"FsA0", tr("a copy of file systems (fsarchiver)")),
    (0, b"P2PC", tr("a file of p2pcloop, and no image")),
)
"""Offset, bytes, text: files that hold no device, or one of a form that is not read."""

_RAW_SECTORS = b"\0" + b"\xff" * 10 + b"\0"
"""How each sector of 2352 bytes of a CD begins (ECMA-130, 14.1)."""

_TABLES = (
    (512, b"PM\0\0", "Apple"),
    (0, b"RDSK", "Amiga"),
    (508, b"\xda\xbe", "Sun"),
    (0, b"\x0b\xe5\xa9\x41", "SGI"),
    (512, b"WEV\x82", "BSD"),
)
"""Partition tables that are not read."""

_UNPACK = tr("unpack it, and give the image that is in it")
_CONVERT = tr("convert it: `qemu-img convert -O raw IN OUT`")
_TEXT = re.compile(rb"[\t\n\v\f\r\x1b\x08\x20-\x7e\x80-\xff]*")
_CONTINUATIONS = bytes(range(0x80, 0xC0))
_DESCRIPTOR = re.compile(rb"\s*# Disk DescriptorFile", re.IGNORECASE)
_MAX_DESCRIPTOR = 1 << 20


def detect_container(head: bytes, tail: bytes) -> str:
    """Return one of `CONTAINERS`, or "" for anything else.

    Args:
        head: the first bytes of the file, at least 512 if it has them.
        tail: its last `TAIL_SIZE` bytes.
    """
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if _behind_skippable(head).startswith(_ZSTD_MAGIC):
        return "zst"
    if head[64:68] == _VDI_MAGIC:
        return "vdi"
    # Further back it is that of one that is cut off.
    return "vhd" if _VHD_COOKIE in tail and len(tail) == TAIL_SIZE else ""


def _behind_skippable(head: bytes) -> bytes:
    """The file without the frames at its start that decoders skip (pzstd writes some)."""
    while frame := _SKIPPABLE.match(head):
        head = head[frame.end() + int.from_bytes(frame[1], "little") :]
    return head


def describe_other(head: bytes, tail: bytes) -> tuple[str, str]:
    """Text for a file that is no image, and a hint; "" twice if it may be one.

    Args:
        head: the first bytes of the file; all of a short one.
        tail: its last `TAIL_SIZE` bytes.
    """
    if _DESCRIPTOR.match(head):
        return tr("a VMware descriptor, which only names the files with the content"), _CONVERT
    for offset, magic, what in _OTHERS:
        if head.startswith(magic, offset):
            hint = _CONVERT if "disk image" in what or "qcow" in what else _UNPACK
            return what, hint
    if head.startswith(_RAW_SECTORS):
        return tr("a CD in raw sectors of 2352 bytes"), tr("convert it: `bchunk IN.bin IN.cue OUT`")
    for offset, magic, what in _TABLES:
        if head.startswith(magic, offset):
            return tr("a disk with a partition table of {what}", what=what), tr(
                "copy the root's partition out of it"
            )
    if tail.startswith(b"koly"):
        return tr("a disk image of macOS (dmg)"), _CONVERT
    if _is_text(head) and _is_text(tail):
        return "text", tr("an image is a device's content: a .cloop, a CD, a raw image, a qcow2, …")
    return "", ""


def _is_text(data: bytes) -> bool:
    """Whether these are lines of UTF-8, whose first and last characters may be cut off."""
    if not data or not _TEXT.fullmatch(data):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data.lstrip(_CONTINUATIONS))
    except UnicodeDecodeError:
        return False
    return True


def check_alone(kind: str, read: Read, size: int, name: str) -> None:
    """Check that a disk image is whole and takes no content from other files.

    Its maker would else choose which of this machine's files are published.

    Args:
        kind: one of `DISK_FORMATS`.
        read: reads the file.
        size: its bytes.
        name: of it, for messages.

    Raises:
        UsageError: it takes content from another file.
        FormatError: it is damaged or cut off.
    """
    try:
        if _CHECKS[kind](read, size, name):
            raise UsageError(
                tr("{name} takes a part of its content from another file", name=name),
                hint="make one image of them first: `qemu-img convert -O raw IN OUT`",
            )
    except (struct.error, KeyError) as err:
        raise FormatError(
            tr("{name} is damaged or cut off: its header is not whole", name=name), hint=_AGAIN
        ) from err


_AGAIN = tr("fetch or copy it again")


def cut_off(name: str | Path, end: int, size: int) -> FormatError:
    """The error for a file of `size` bytes whose content ends at byte `end`, behind its own end."""
    return FormatError(
        tr(
            "{name} is cut off: it says that it has {end} bytes, and {size} are here",
            name=name,
            end=end,
            size=size,
        ),
        hint=_AGAIN,
    )


def _check_qcow2(read: Read, size: int, name: str) -> bool:
    """A backing file, or an external data file (incompatible feature 2)."""
    header = read(0, 80).ljust(80, b"\0")
    version, backing = struct.unpack_from(">4xIQ", header)
    if struct.unpack_from(">I", header, 32)[0]:
        raise UsageError(
            tr("{name} is encrypted", name=name),
            hint="decrypt it first: `qemu-img convert` with the secret of the image",
        )
    features = struct.unpack_from(">Q", header, 72)[0] if version > 2 else 0
    if backing or features & 1 << 2:
        return True
    if (end := _compressed_end(read, header, wide=bool(features & 1 << 4))) > size:
        raise cut_off(name, end, size)
    return False


def _compressed_end(read: Read, header: bytes, *, wide: bool) -> int:
    """The end of a qcow2's compressed clusters: QEMU takes what lies behind the file's end for
    zeros, and their decompression seldom notices.

    Args:
        wide: entries of tables have 16 bytes (incompatible feature 4).
    """
    cluster_bits, _, _, entries, table = struct.unpack_from(">IQIIQ", header, 20)
    if not 9 <= cluster_bits <= 21 or entries > _MAX_QCOW2_TABLES:
        return 0  # `qemu-img` refuses it
    cluster, shift, form = 1 << cluster_bits, 62 - (cluster_bits - 8), ">Q8x" if wide else ">Q"
    end = 0
    data = read(table, entries * 8)
    places = {at & _QCOW2_OFFSET for (at,) in struct.iter_unpack(">Q", data[: len(data) // 8 * 8])}
    for place in places:
        found = b"" if not place or place % cluster else read(place, cluster)
        for (entry,) in struct.iter_unpack(form, found[: len(found) // 16 * 16]):
            if entry & _QCOW2_COMPRESSED:
                offset, sectors = entry & (1 << shift) - 1, (entry & _QCOW2_COMPRESSED - 1) >> shift
                end = max(end, (offset & ~511) + (sectors + 1) * 512)
    return end


_QCOW2_COMPRESSED = 1 << 62
_QCOW2_OFFSET = (1 << 56) - (1 << 9)
_MAX_QCOW2_TABLES = (32 << 20) // 8
"""As QEMU takes (block/qcow2.h, QCOW_MAX_L1_SIZE)."""


def _check_vmdk(read: Read, size: int, name: str) -> bool:
    """Without a capacity only the descriptor counts, which names other files; it may name a parent.

    Header: magic, version, flags, capacity, grain size, descriptor's place and length, in sectors.
    """
    header = read(0, 512)
    capacity, _, start, length = struct.unpack_from("<QQQQ", header, 12)
    if not capacity:
        return True
    if (start + length) * 512 > size or length * 512 > _MAX_DESCRIPTOR:
        raise FormatError(
            tr("{name} is cut off, or its descriptor is too long", name=name), hint=_AGAIN
        )
    descriptor = read(start * 512, length * 512)
    if not descriptor.strip(b"\0 \r\n"):
        raise UsageError(
            tr(
                "{name} is a part of a VMware disk image: another file has its descriptor",
                name=name,
            ),
            hint="make one image of them with that file: `qemu-img convert -O raw IN OUT`",
        )
    parent = re.search(
        rb"^\s*parentCID\s*=\s*([0-9a-f]+)", descriptor, re.MULTILINE | re.IGNORECASE
    )
    child = parent is not None and int(parent[1], 16) != 0xFFFFFFFF
    return child or b"parentfilenamehint" in descriptor.lower()


def _check_vdi(read: Read, size: int, name: str) -> bool:
    """Type 1 grows, 2 is of fixed size, others hold differences; so does one with a parent's id."""
    header = read(0, 512)
    (kind,) = struct.unpack_from("<I", header, 76)
    (data,) = struct.unpack_from("<I", header, 344)
    block, _, _, allocated = struct.unpack_from("<IIII", header, 376)
    if data + allocated * block > size:
        raise cut_off(name, data + allocated * block, size)
    return kind not in (1, 2) or any(header[424:456])


def _check_vhd(read: Read, size: int, name: str) -> bool:
    """Its last 512 bytes are the footer: type 2 is of fixed size, 3 grows, 4 holds differences."""
    footer = read(max(0, size - 512), 512)
    if not footer.startswith(_VHD_COOKIE):
        raise FormatError(
            tr("{name} is cut off: its last 512 bytes are no VHD footer", name=name), hint=_AGAIN
        )
    (current,) = struct.unpack_from(">Q", footer, 48)
    (kind,) = struct.unpack_from(">I", footer, 60)
    if kind == 2 and current + 512 > size:
        raise FormatError(
            tr(
                "{name} is cut off: it says that it has {current} bytes, and {size} are here",
                name=name,
                current=current + 512,
                size=size,
            ),
            hint=_AGAIN,
        )
    return kind not in (2, 3)


def _check_vhdx(read: Read, size: int, name: str) -> bool:
    """Whether its file parameters name a parent; QEMU finds blocks that begin behind the end, but
    not one that ends there ([MS-VHDX] 2.2.3 and 2.6.2.1)."""
    regions = _vhdx_table(read(192 << 10, 64 << 10), b"regi", 16)
    (metadata, _), (table, length) = regions[_VHDX_METADATA], regions[_VHDX_BLOCKS]
    items = _vhdx_table(read(metadata, 64 << 10), b"metadata", 32)
    where, _ = items[_VHDX_PARAMETERS]
    block, flags = struct.unpack("<II", read(metadata + (where & 0xFFFFFFFF), 8))
    end = 0
    for at in range(table, table + min(length, _MAX_BLOCK_TABLE), 1 << 20):
        data = read(at, min(1 << 20, table + length - at))
        for (entry,) in struct.iter_unpack("<Q", data[: len(data) // 8 * 8]):
            if entry & 7 == _VHDX_PRESENT:
                end = max(end, (entry >> 20 << 20) + block)
    if end > size:
        raise cut_off(name, end, size)
    return bool(flags & 2)


def _vhdx_table(data: bytes, signature: bytes, entries: int) -> dict[bytes, tuple[int, int]]:
    """A region table (32-bit length), or the one of the metadata (offset and length of 32 bits):
    by GUID what follows it."""
    if not data.startswith(signature):
        raise struct.error("another signature")
    found = {}
    for at in range(entries, len(data) - 31, 32):
        guid, offset, length = struct.unpack_from("<16sQI", data, at)
        found[guid] = offset, length
    return found


_VHDX_BLOCKS = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_VHDX_METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VHDX_PRESENT = 6
_MAX_BLOCK_TABLE = 256 << 20

_CHECKS = {
    "qcow2": _check_qcow2,
    "vmdk": _check_vmdk,
    "vdi": _check_vdi,
    "vhd": _check_vhd,
    "vhdx": _check_vhdx,
}
