"""Layers written as a torrent's content: where the files lie, and what is said to the user."""

import errno
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError, StorageError, UsageError
from p2pcloop.formats.index import IndexHeader, open_index
from p2pcloop.image.content import LocalContent
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import inspect_file
from p2pcloop.making.pack import odd_length, read_start, write_layer
from tests.support.images import ignore, make_image, padded, read_views, write_cloop_file

RAW = make_image(300_000, seed=2)


def folder_of(staging: Path, header: IndexHeader) -> Path:
    """Everything that was written: two files in one folder that is named by the layer."""
    folder = staging / "data" / header.layer_id.hex()[:32]
    found = {path for path in staging.rglob("*") if not path.is_dir()}
    assert found == {folder / "index", folder / "pack"}
    assert open_index((folder / "index").read_bytes()) == header
    assert (folder / "pack").stat().st_size == header.pack_length
    return folder


def read_layer(folder: Path) -> bytes:
    index = (folder / "index").read_bytes()
    layer = Layer(LocalContent(folder / "pack", index), open_index(index))
    device = ImageDevice(MergedImage([layer]))
    data = read_views(device, 0, [device.size])
    device.close()
    return data


def test_a_cloop_is_linked_to_where_it_lies(tmp_path: Path) -> None:
    path = write_cloop_file(tmp_path / "a.cloop", RAW, 8192)
    header, note = write_layer(inspect_file(path), tmp_path / "staging", ignore)
    assert note == ""
    folder = folder_of(tmp_path / "staging", header)
    assert (folder / "pack").readlink() == path
    assert read_layer(folder) == padded(RAW, 8192)


def test_a_home_that_takes_no_link_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "", str(target), None, str(self))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    cloop = inspect_file(write_cloop_file(tmp_path / "own.cloop", make_image(100_000)))
    with pytest.raises(StorageError) as caught:
        write_layer(cloop, tmp_path / "home", ignore)
    assert str(tmp_path / "home") in str(caught.value)
    assert "own.cloop" not in str(caught.value)


def test_a_raw_image_is_packed(tmp_path: Path) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(RAW[: 73 * 4096])
    header, note = write_layer(inspect_file(path), tmp_path / "staging", ignore)
    assert note == ""
    folder = folder_of(tmp_path / "staging", header)
    assert not (folder / "pack").is_symlink()
    assert (folder / "pack").stat().st_size < 73 * 4096
    assert read_layer(folder) == RAW[: 73 * 4096]


def test_a_raw_image_of_any_size_lies_in_whole_blocks(tmp_path: Path) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(RAW)
    header, note = write_layer(inspect_file(path), tmp_path / "staging", ignore)
    assert note == ""
    assert odd_length(inspect_file(path)) == len(RAW)
    assert read_layer(folder_of(tmp_path / "staging", header)) == padded(RAW)


@pytest.mark.parametrize("block_size", [512, 2048, 66048])
def test_a_cloop_of_other_blocks_is_repacked_and_that_is_said(
    tmp_path: Path, block_size: int
) -> None:
    path = write_cloop_file(tmp_path / "a.cloop", RAW, block_size)
    header, note = write_layer(inspect_file(path), tmp_path / "staging", ignore)
    assert f"blocks of {block_size} bytes" in note
    assert "repacked" in note
    expected = padded(padded(RAW, block_size))
    assert read_layer(folder_of(tmp_path / "staging", header)) == expected


@pytest.mark.parametrize("kind", ["cloop", "raw"])
def test_the_same_image_makes_the_same_content(tmp_path: Path, kind: str) -> None:
    made = []
    for name in ("first", "second"):
        path = tmp_path / f"{name}.img"
        path.write_bytes(RAW)
        if kind == "cloop":
            write_cloop_file(path, RAW)
        header, _ = write_layer(inspect_file(path), tmp_path / name, ignore)
        folder = folder_of(tmp_path / name, header)
        made.append((folder.name, *((folder / x).read_bytes() for x in ("index", "pack"))))
    assert made[0] == made[1]


def test_an_image_of_zeros_has_an_empty_pack(tmp_path: Path) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(bytes(100_000))
    header, _ = write_layer(inspect_file(path), tmp_path / "staging", ignore)
    assert header.pack_length == 0
    assert read_layer(folder_of(tmp_path / "staging", header)) == bytes(25 * 4096)


def test_errors_leave_in_our_own_terms(tmp_path: Path) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(RAW)
    file = inspect_file(path)
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(StorageError, match="taken"):
        write_layer(file, tmp_path / "taken", ignore)
    with pytest.raises(UsageError, match="0 bytes"):
        write_layer(ImageFile(path, "raw", 0), tmp_path / "a", ignore)
    with path.open("r+b") as image:
        image.truncate(100)
    with pytest.raises(FormatError, match="shorter"):
        write_layer(file, tmp_path / "b", ignore)
    path.unlink()
    with pytest.raises(StorageError):
        write_layer(file, tmp_path / "c", ignore)
    cloop = write_cloop_file(path, RAW)
    file = inspect_file(cloop)
    cloop.write_bytes(cloop.read_bytes()[:-1])
    with pytest.raises(FormatError, match="cut off"):
        write_layer(file, tmp_path / "d", ignore)


def test_the_start_of_a_device(tmp_path: Path) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(RAW)
    assert read_start(inspect_file(path), 5000) == RAW[:5000]
    assert read_start(inspect_file(path), 1 << 20) == RAW
    cloop = write_cloop_file(tmp_path / "a.cloop", RAW, 512)
    assert read_start(inspect_file(cloop), 5000) == RAW[:5000]
    assert read_start(inspect_file(cloop), 1 << 20) == padded(RAW, 512)
