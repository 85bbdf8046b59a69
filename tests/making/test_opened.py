"""Parts of an image file as one device: read, indexed as it lies, and repacked."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, UsageError
from p2pcloop.formats.boot_parameters import Root
from p2pcloop.formats.extents import Extents
from p2pcloop.image.device import ImageDevice
from p2pcloop.making.image_file import ImageFile, Part
from p2pcloop.making.local import inspect_file, make_index, open_local
from p2pcloop.making.opened import ALIGNMENT, OpenImage
from p2pcloop.making.pack import device_roots, device_size, read_start, write_layer
from tests.support.cds import make_iso
from tests.support.images import ignore, make_image, padded, read_views, write_cloop_file

LUKS = b"LUKS\xba\xbe"


def cloop_bytes(raw: bytes, block_size: int) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        return write_cloop_file(Path(scratch) / "c", raw, block_size).read_bytes()


devices = st.tuples(
    st.integers(1, 200_000),
    st.integers(1, 9),
    st.sampled_from([("raw", 1), ("cloop", 4096), ("cloop", 65536), ("cloop", 1 << 17)]),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(devices, min_size=1, max_size=3), st.integers(1, 4), st.data())
def test_any_parts_read_as_one_device(
    wanted: list[tuple[int, int, tuple[str, int]]], gap: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        file, device = write_parts(Path(scratch) / "file", wanted, gap)
        whole = padded(device)
        offset = data.draw(st.integers(0, len(device) - 1))
        length = data.draw(st.integers(0, len(device) - offset))
        with OpenImage(file.path, file.parts) as image:
            assert image.size == len(device)
            assert image.read(offset, length) == device[offset : offset + length]
        assert device_size(file) == len(whole)
        assert all(root.end <= len(whole) for root in device_roots(file))
        indexed = ImageDevice(open_local(file, None, ignore))
        try:
            assert read_views(indexed, 0, [len(whole)]) == whole
        finally:
            indexed.close()


def write_parts(
    path: Path, wanted: list[tuple[int, int, tuple[str, int]]], gap: int
) -> tuple[ImageFile, bytes]:
    """A file with devices in it, and what they are together."""
    data, device, parts = b"?" * (2048 * gap), b"", []
    for size, seed, (kind, unit) in wanted:
        raw = make_image(size, seed)
        stored = cloop_bytes(raw, unit) if kind == "cloop" else raw
        parts.append(Part(f"d/{seed}", kind, Extents([(len(data), len(stored))])))
        data += stored + b"?" * (2048 * gap - len(stored) % 2048)
        device = padded(device, ALIGNMENT) + padded(raw, unit)
    path.write_bytes(data)
    return ImageFile(path, "iso", len(data), tuple(parts)), device


def test_where_the_roots_are(tmp_path: Path) -> None:
    one = (100_000, 1, ("raw", 1))
    file, _ = write_parts(tmp_path / "file", [one, (2_000_000, 2, ("cloop", 65536)), one], 1)
    second = -(-2_000_000 // 65536) * 65536
    assert device_roots(file) == (
        Root(0, 102_400),
        Root(1 << 20, second),
        Root(3 << 20, 102_400),
    )
    file, _ = write_parts(tmp_path / "file", [one], 1)
    assert device_roots(file) == ()


def test_a_layer_in_place_is_a_link_to_all_of_the_file(tmp_path: Path) -> None:
    file, device = write_parts(tmp_path / "file", [(300_000, 1, ("cloop", 65536))], 3)
    header, remark = write_layer(file, tmp_path / "staging", ignore)
    pack = tmp_path / "staging/data" / header.layer_id.hex()[:32] / "pack"
    assert (remark, pack.readlink(), header.pack_length) == ("", file.path, file.size)
    assert header.image_size == len(device)


def test_a_file_in_several_places_is_repacked(tmp_path: Path) -> None:
    raw = make_image(300_000)
    cloop = cloop_bytes(raw, 65536)
    path = tmp_path / "file"
    path.write_bytes(cloop[10_000:] + cloop[:10_000])
    where = Extents([(len(cloop) - 10_000, 10_000), (0, len(cloop) - 10_000)])
    file = ImageFile(path, "iso", len(cloop), (Part("a/b", "cloop", where),))
    assert read_start(file, 400_000) == padded(raw, 65536)
    header, remark = write_layer(file, tmp_path / "staging", ignore)
    pack = tmp_path / "staging/data" / header.layer_id.hex()[:32] / "pack"
    assert f"a/b on {path} lies in 2 places: it is repacked" in remark
    assert not pack.is_symlink()
    with pytest.raises(UsageError, match="lies in 2 places"):
        make_index(file, ignore)


@pytest.mark.interop
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            LUKS + bytes(8000),
            r"neither a cloop nor a file system that is known: it is an encrypted device",
        ),
        (make_image(9000, 2), "it may be encrypted"),
        (b"PK\3\4" + bytes(2000), "neither a cloop nor a file system"),
        (b"#!/bin/sh\n#V2.0 Format\n" + bytes(200), "block size is 0"),
    ],
)
def test_a_knoppix_that_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = make_iso(tmp_path / "cd.iso", {"KNOPPIX/KNOPPIX": content}, "-r")
    with pytest.raises(FormatError, match=message) as caught:
        device_size(inspect_file(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.interop
def test_more_images_than_are_joined(tmp_path: Path) -> None:
    files = {f"KNOPPIX/KNOPPIX{n or ''}": b"x" for n in range(17)}
    path = make_iso(tmp_path / "cd.iso", files, "-r")
    with pytest.raises(FormatError, match="17 images"):
        inspect_file(path)
