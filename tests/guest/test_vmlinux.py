"""Kernels are unpacked for QEMU, where a virtual machine can start them."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from p2pcloopd.guest.system.vmlinux import unpack_kernel, unpacked_kernel_file
from tests.support import elf_files

XEN_ENTRY = struct.pack("<III", 4, 4, 18) + b"Xen\0" + bytes(4)
OTHER = struct.pack("<III", 4, 3, 3) + b"GNU\0" + b"abc\0"

WAYS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def elf(notes: bytes = OTHER + XEN_ENTRY, machine: int = 62, kind: int = 4) -> bytes:
    """A program with one segment, of notes."""
    return elf_files.elf((kind, 0, notes), machine=machine)


def bz_image(packed: bytes, protocol: int = 0x20F) -> bytes:
    """A bzImage; the size of what it unpacks to follows it."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, protocol)
    struct.pack_into("<II", head, 0x248, 7, len(packed) + 4)
    return bytes(head) + bytes(7) + packed + b"size" + b"relocations"


@pytest.mark.parametrize("way", WAYS)
def test_what_is_packed_comes_out(way: str) -> None:
    assert unpack_kernel(bz_image(WAYS[way](elf()))) == elf()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_damaged_is_none(way: str) -> None:
    packed = WAYS[way](elf() + os.urandom(5000))
    for length in (0, 3, 20, len(packed) // 2, len(packed) - 9):
        assert unpack_kernel(bz_image(packed[:length])) is None
    assert unpack_kernel(bz_image(packed)[: 1024 + 40]) is None
    assert unpack_kernel(bz_image(packed[:30] + b"\xff" * 9 + packed[39:])) is None


@pytest.mark.parametrize(
    "program",
    [
        elf(OTHER),
        elf(OTHER + XEN_ENTRY[:8]),
        elf(machine=183),
        elf(kind=1),
        elf()[:90],
        b"MZ" + elf(),
        b"",
    ],
    ids=["no entry", "cut short", "arm64", "no notes", "no headers", "no ELF", "nothing"],
)
def test_what_no_virtual_machine_starts_is_none(program: bytes) -> None:
    assert unpack_kernel(bz_image(gzip.compress(program))) is None


def test_other_images_are_none() -> None:
    assert unpack_kernel(b"") is None
    assert unpack_kernel(elf()) is None
    assert unpack_kernel(bz_image(b"BZh9" + bytes(100))) is None
    assert unpack_kernel(bz_image(gzip.compress(elf()), protocol=0x207)) is None


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(gzip.compress(elf())))
    return path


def test_a_kernel_is_unpacked_once(kernel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache/kernels"
    made = unpacked_kernel_file(kernel, folder)
    assert made is not None
    assert made.read_bytes() == elf()
    assert made.stat().st_mode & 0o777 == 0o644
    before = made.stat()
    assert unpacked_kernel_file(kernel, folder) == made
    assert made.stat().st_ino == before.st_ino
    assert list(folder.iterdir()) == [made]


def test_those_of_other_kernels_go_after_a_day_but_for_the_last(
    kernel: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    ages = {
        "vmlinux-1": 1,
        "vmlinux-2": 2,
        "vmlinux-3": 3,
        "vmlinux-4": 4,
        ".new-1": 1,
        "else-1": 1,
    }
    for name, days in ages.items():
        (folder / name).touch()
        os.utime(folder / name, (days * 86400, days * 86400))
    (folder / ".new-young").touch()
    made = unpacked_kernel_file(kernel, folder)
    assert made is not None
    kept = {"else-1", "vmlinux-3", "vmlinux-4", ".new-young", made.name}
    assert {path.name for path in folder.iterdir()} == kept


def test_another_that_is_removed_meanwhile_costs_nothing(kernel: Path, tmp_path: Path) -> None:
    """A link that leads nowhere is listed, too, and is no file."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "vmlinux-1").symlink_to("none")
    made = unpacked_kernel_file(kernel, folder)
    assert made is not None
    assert made.read_bytes() == elf()


def test_where_nothing_can_be_written_there_is_none(kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert unpacked_kernel_file(kernel, tmp_path / "file/kernels") is None
    assert unpacked_kernel_file(tmp_path / "none", tmp_path / "kernels") is None
    kernel.write_bytes(b"no kernel")
    assert unpacked_kernel_file(kernel, tmp_path / "kernels") is None
    assert not (tmp_path / "kernels").exists()
