"""What is in containers comes out as it went in, in bounded memory; damage is an error of ours."""

import bz2
import gzip
import lzma
import random
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, StorageError, UsageError
from p2pcloop.formats.containers import DISK_FORMATS, detect_container
from p2pcloop.formats.filesystem import PROBE_SIZE
from p2pcloop.making import qemu_img
from p2pcloop.making import unpack as unpack_module
from p2pcloop.making.qemu_img import with_name
from p2pcloop.making.unpack import unpack, unpack_nested
from tests.support.images import ignore, make_image
from tests.support.programs import tool

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "bz2": bz2.compress,
}
RAW = make_image(700_000, seed=2) + bytes(300_000)


def unpacked(path: Path, kind: str, data: bytes) -> bytes:
    packed, out = path / "packed", path / "out"
    packed.write_bytes(data)
    out.unlink(missing_ok=True)
    unpack(kind, packed, out, ignore, name=Path("given"))
    return out.read_bytes()


@pytest.mark.parametrize("kind", COMPRESS)
def test_what_is_compressed(tmp_path: Path, kind: str) -> None:
    compress = COMPRESS[kind]
    assert unpacked(tmp_path, kind, compress(RAW)) == RAW
    # Several members, as pigz and pixz write them, one after the other.
    assert unpacked(tmp_path, kind, compress(RAW) + compress(RAW[:999])) == RAW + RAW[:999]


@pytest.mark.parametrize("kind", COMPRESS)
def test_zeros_take_no_room(tmp_path: Path, kind: str) -> None:
    size = 64 << 20
    assert unpacked(tmp_path, kind, COMPRESS[kind](bytes(size))) == bytes(size)
    assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("kind", COMPRESS)
@settings(max_examples=25)
@given(data=st.data())
def test_damage_is_an_error_of_ours(kind: str, data: st.DataObject) -> None:
    good = COMPRESS[kind](RAW[:70_000])
    if data.draw(st.booleans()):
        bad = good[: data.draw(st.integers(12, len(good) - 1))]
    else:
        changed = bytearray(good)
        changed[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
        bad = bytes(changed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            unpacked(Path(folder), kind, bad)
        except (FormatError, UsageError) as err:
            assert err.hint, err
            assert "given" in str(err)


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_download_that_broke_off(tmp_path: Path, kind: str) -> None:
    data = COMPRESS[kind](RAW)
    for length in (len(data) // 2, len(data) - 1):
        with pytest.raises(FormatError, match="given is cut off"):
            unpacked(tmp_path, kind, data[:length])


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("junk", [b"x", b"junk\n", b"\0\0\0\1", b"junk" * 99])
def test_junk_behind_what_is_compressed_is_not_called_cut_off(
    tmp_path: Path, kind: str, junk: bytes
) -> None:
    with pytest.raises(FormatError, match="given has junk behind its compressed data"):
        unpacked(tmp_path, kind, COMPRESS[kind](RAW) + junk)


@pytest.mark.parametrize("kind", COMPRESS)
def test_an_archive_is_refused_before_it_is_unpacked(tmp_path: Path, kind: str) -> None:
    tar = bytes(257) + b"ustar\0" + bytes(5 << 20)
    with pytest.raises(UsageError, match="given is no disk image: it holds a tar archive"):
        unpacked(tmp_path, kind, COMPRESS[kind](tar))
    assert (tmp_path / "out").stat().st_size == 0


def test_a_bomb_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qcow2 = tmp_path / "qcow2"
    (tmp_path / "raw").write_bytes(RAW)
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", qcow2)
    monkeypatch.setattr(qemu_img, "RESERVE", 1 << 60)
    for kind, data in (("gz", gzip.compress(RAW)), ("qcow2", qcow2.read_bytes())):
        with pytest.raises(StorageError, match="no room for the content of given") as caught:
            unpacked(tmp_path, kind, data)
        assert caught.value.hint
    monkeypatch.setattr(unpack_module, "MAX_IMAGE_SIZE", 100_000)
    with pytest.raises(FormatError, match="more than the 16 TiB"):
        unpacked(tmp_path, "gz", gzip.compress(bytes(1 << 20)))


@pytest.mark.interop
@pytest.mark.parametrize("kind", DISK_FORMATS)
def test_disk_images(tmp_path: Path, kind: str) -> None:
    """Also of a path that QEMU would take for something else."""
    folder = tmp_path / "nbd:a,b=c\udcff"
    folder.mkdir()
    raw, packed, out = folder / "raw", folder / 'json:{"', folder / "out"
    raw.write_bytes(RAW + bytes(48_576))  # whole MiB, as a VHD of QEMU's is
    tool("qemu-img", "convert", "-O", DISK_FORMATS[kind], raw, f"{tmp_path}/made")
    (tmp_path / "made").rename(packed)
    told: list[int] = []
    unpack(kind, packed, out, told.append, name=packed)
    assert out.read_bytes().rstrip(b"\0") == RAW.rstrip(b"\0")
    assert told[-1] >= len(RAW)


@pytest.mark.interop
@pytest.mark.parametrize("kind", DISK_FORMATS)
def test_disk_images_that_are_cut_off(tmp_path: Path, kind: str) -> None:
    """QEMU reads zeros behind the end of a file, and would say nothing of it."""
    raw, packed = tmp_path / "raw", tmp_path / "packed"
    raw.write_bytes(make_image(4 << 20, seed=2))
    tool("qemu-img", "convert", "-O", DISK_FORMATS[kind], raw, packed)
    whole = packed.read_bytes()
    for length in (len(whole) * 3 // 4, len(whole) - 1024):
        with pytest.raises(FormatError, match="given") as caught:
            unpacked(tmp_path, kind, whole[:length])
        assert caught.value.hint
        assert "json" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.interop
@pytest.mark.parametrize(
    "options", [("-c", "-O", "qcow2"), ("-O", "vmdk", "-o", "subformat=streamOptimized")]
)
def test_compressed_disk_images(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Of compressed data QEMU does not tell where it lies: it is longer than the file."""
    raw, packed = tmp_path / "raw", tmp_path / "made"
    content = random.Random(3).randbytes(20_000).ljust(1 << 16, b"a") * 64
    raw.write_bytes(content)
    tool("qemu-img", "convert", *options, raw, packed)
    assert packed.stat().st_size < raw.stat().st_size
    kind = "vmdk" if "vmdk" in options else "qcow2"
    whole = packed.read_bytes()
    assert unpacked(tmp_path, kind, whole) == content
    # A stream of deflate that is cut off may end without an error, and wrong.
    for length in (len(whole) - 700, len(whole) * 99 // 100, len(whole) * 3 // 4):
        try:
            assert unpacked(tmp_path, kind, whole[:length]) == content, length
        except FormatError as err:
            assert "given" in str(err)
        else:
            assert kind == "vmdk", "it has a footer of 1.5 kB"


@pytest.mark.interop
def test_an_image_whose_writer_was_ended_by_force_can_be_repaired(tmp_path: Path) -> None:
    dirty = tmp_path / "dirty.qcow2"
    tool("qemu-img", "create", "-f", "qcow2", "-o", "lazy_refcounts=on", dirty, "4M")
    subprocess.run(["qemu-io", "-c", "write 0 64k", "-c", "abort", dirty], timeout=120, check=False)
    with pytest.raises(FormatError) as caught:
        unpacked(tmp_path, "qcow2", dirty.read_bytes())
    assert "qemu-img check -r all" in (caught.value.hint or "")
    tool("qemu-img", "check", "-r", "all", dirty)
    assert len(unpacked(tmp_path, "qcow2", dirty.read_bytes())) == 4 << 20


def test_messages_of_programs_have_the_users_name() -> None:
    said = "VHDX image file '/proc/self/fd/3' opened read-only, but contains a log"
    assert with_name(said, Path("my.vhdx")).startswith("VHDX image file 'my.vhdx' opened")
    said = "libisofs: FAILURE : Cannot open stdio:/proc/self/fd/17"
    assert with_name(said, Path("my.iso")).endswith("Cannot open my.iso")


@pytest.mark.interop
def test_a_part_of_a_disk_image_is_named(tmp_path: Path) -> None:
    raw, packed = tmp_path / "raw", tmp_path / "made.vmdk"
    raw.write_bytes(RAW)
    parts = ("-o", "subformat=twoGbMaxExtentSparse")
    tool("qemu-img", "convert", "-O", "vmdk", *parts, raw, packed)
    part = (tmp_path / "made-s001.vmdk").read_bytes()
    with pytest.raises(UsageError, match="given is a part of a VMware disk image") as caught:
        unpacked(tmp_path, "vmdk", part)
    assert caught.value.hint


def skippable(content: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A5E, len(content)) + content


def test_frames_that_decoders_of_zstd_skip(tmp_path: Path) -> None:
    """pzstd writes one before each frame, and the seekable format one at the end."""
    compress = COMPRESS["zst"]
    pieces = (skippable(b"size"), compress(RAW), skippable(b""), compress(RAW[:999]))
    data = b"".join(pieces) + skippable(bytes(5000))
    assert detect_container(data[:PROBE_SIZE], data[-512:]) == "zst"
    assert unpacked(tmp_path, "zst", data) == RAW + RAW[:999]
    with pytest.raises(FormatError, match="more that is cut off"):
        unpacked(tmp_path, "zst", data[:-1])


@pytest.mark.interop
def test_a_backing_file_is_never_opened(tmp_path: Path) -> None:
    secret, child = tmp_path / "secret", tmp_path / "child"
    secret.write_bytes(b"secret" * 100_000)
    tool("qemu-img", "create", "-f", "qcow2", "-b", secret, "-F", "raw", child)
    with pytest.raises(UsageError, match="from another file"):
        unpacked(tmp_path, "qcow2", child.read_bytes())
    assert not (tmp_path / "out").exists()


@pytest.mark.interop
def test_a_file_system_that_lies_in_a_squashfs(tmp_path: Path) -> None:
    tree, squashfs, cd = tmp_path / "tree", tmp_path / "squashfs", tmp_path / "cd"
    (tree / "LiveOS").mkdir(parents=True)
    (tree / "LiveOS/rootfs.img").write_bytes(RAW)
    tool("mksquashfs", tree, squashfs, "-quiet", "-no-progress")
    cd.write_bytes(bytes(4096) + squashfs.read_bytes())
    out = tmp_path / "out"
    assert unpack_nested(cd, 4096, out, ignore, name=cd)
    assert out.read_bytes() == RAW
    (tree / "LiveOS/rootfs.img").rename(tree / "usr")
    squashfs.unlink()
    tool("mksquashfs", tree, squashfs, "-quiet", "-no-progress")
    assert not unpack_nested(squashfs, 0, tmp_path / "none", ignore, name=cd)
    assert not (tmp_path / "none").exists()
    squashfs.write_bytes(squashfs.read_bytes()[:200])
    with pytest.raises(FormatError, match="unsquashfs says") as caught:
        unpack_nested(squashfs, 0, tmp_path / "none", ignore, name=cd)
    assert caught.value.hint
    assert "/proc/" not in str(caught.value)
