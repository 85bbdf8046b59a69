"""File systems are told by their superblocks, as the tools of each write them."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.formats.filesystem import PROBE_SIZE, detect_filesystem


def superblock(offset: int, magic: bytes) -> bytes:
    return (bytes(offset) + magic).ljust(PROBE_SIZE, b"\0")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (superblock(0, b"hsqs"), "squashfs"),
        (superblock(32769, b"CD001\1"), "iso9660"),
        (superblock(1024, b"\xe2\xe1\xf5\xe0"), "erofs"),
        (superblock(1024 + 56, b"\x53\xef"), "ext2"),
        (bytes(PROBE_SIZE), ""),
        (b"", ""),
        (superblock(1024 + 56, b"\x53\xef")[:2000], ""),
    ],
)
def test_magic_numbers(start: bytes, kind: str) -> None:
    assert detect_filesystem(start) == kind


@pytest.mark.interop
@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_what_mke2fs_makes(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(2 << 20))
    subprocess.run(["mke2fs", "-q", "-t", kind, image], check=True, timeout=30)
    with image.open("rb") as file:
        assert detect_filesystem(file.read(PROBE_SIZE)) == kind


@given(st.binary(max_size=2100))
def test_any_start_is_told_without_an_error(start: bytes) -> None:
    assert detect_filesystem(start) in ("", "squashfs", "ext2", "ext3", "ext4", "erofs")
