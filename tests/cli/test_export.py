"""`p2pcloop export` of files that lie here: the whole image, or nothing."""

import os
from pathlib import Path

import pytest

from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.overlay import Overlay
from p2pcloop.making.local import inspect_file, open_local
from tests.cli.conftest import Run
from tests.support.images import ignore, make_image, padded, write_cloop_file

RAW = make_image((3 << 20) + 300_000)


@pytest.fixture
def cloop(tmp_path: Path) -> Path:
    return write_cloop_file(tmp_path / "a.cloop", RAW)


@pytest.fixture
def overlay(tmp_path: Path, cloop: Path) -> Path:
    """Changes two blocks and zeroes three; see `changed`."""
    image = open_local(inspect_file(cloop), None, ignore)
    path = tmp_path / "mine.delta"
    with Overlay.create(path, image_id=image.image_id, image_size=image.size) as made:
        made.write(4096, [memoryview(b"mine" * 2048)])
        made.zero(40, 3)
        made.prepare_flush()()
    image.close()
    return path


def changed() -> bytes:
    content = bytearray(padded(RAW, 65536))
    content[4096 : 3 * 4096] = b"mine" * 2048
    content[40 * 4096 : 43 * 4096] = bytes(3 * 4096)
    return bytes(content)


def test_a_raw_image(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    ran = p2pcloop("export", cloop, out)
    assert (ran.code, ran.err) == (0, "")
    assert str(out) in ran.out
    assert out.read_bytes() == padded(RAW, 65536)
    assert out.stat().st_mode & 0o111 == 0


def test_zeros_become_holes(p2pcloop: Run, tmp_path: Path) -> None:
    raw = b"start".ljust(4096, b"\0") + bytes((8 << 20) - 4096)
    (tmp_path / "raw.img").write_bytes(raw)
    p2pcloop("export", tmp_path / "raw.img", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == raw
    assert (tmp_path / "out").stat().st_blocks * 512 <= 2 << 20


def test_a_cloop(p2pcloop: Run, tmp_path: Path) -> None:
    (tmp_path / "raw.img").write_bytes(RAW)
    out = tmp_path / "out.cloop"
    ran = p2pcloop("export", tmp_path / "raw.img", out, "--json")
    assert ran.json == {
        "file": str(out),
        "size": len(padded(RAW)),
        "stored": out.stat().st_size,
    }
    with open_cloop(out) as made:
        assert made.read(0, made.index.header.size) == padded(RAW, 65536)


@pytest.mark.parametrize("name", ["out.img", "out.cloop"])
def test_with_an_overlay(
    p2pcloop: Run, cloop: Path, overlay: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    ran = p2pcloop("export", cloop, out, "--overlay", overlay)
    assert (ran.code, ran.err) == (0, "")
    if name.endswith(".cloop"):
        with open_cloop(out) as made:
            assert made.read(0, made.index.header.size) == changed()
    else:
        assert out.read_bytes() == changed()


def test_an_overlay_of_another_image(p2pcloop: Run, overlay: Path, tmp_path: Path) -> None:
    other = write_cloop_file(tmp_path / "other.cloop", RAW[::-1])
    ran = p2pcloop("export", other, tmp_path / "out", "--overlay", overlay)
    assert ran.code == 5
    assert "hint: " in ran.err
    assert not (tmp_path / "out").exists()


def test_a_file_that_exists_is_replaced_only_when_told(
    p2pcloop: Run, cloop: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.img"
    out.write_bytes(b"precious")
    ran = p2pcloop("export", cloop, out)
    assert ran.code == 2
    assert "--force" in ran.err
    assert out.read_bytes() == b"precious"
    assert p2pcloop("export", cloop, out, "--force").code == 0
    assert out.read_bytes() == padded(RAW, 65536)


def test_an_export_that_fails_leaves_what_was_there(
    p2pcloop: Run, cloop: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.img"
    out.write_bytes(b"precious")
    assert p2pcloop("export", cloop, tmp_path / "first.img").code == 0  # its index is kept now
    with open_cloop(cloop) as opened:
        offset, length = opened.index.extent(21)
    status = cloop.stat()
    with cloop.open("r+b") as file:
        file.seek(offset + length // 2)
        file.write(b"rot")
    # A disk that rots does not change the time of the file.
    os.utime(cloop, ns=(status.st_atime_ns, status.st_mtime_ns))
    ran = p2pcloop("export", cloop, out, "--force")
    assert ran.code == 4
    assert "does not match its hash" in ran.err
    assert out.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"a.cloop", "first.img", "out.img"}


def test_a_folder_that_is_not_there(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    ran = p2pcloop("export", cloop, tmp_path / "none" / "out.img")
    assert ran.code == 11
    assert "cannot write" in ran.err
    assert f"hint: make {tmp_path / 'none'} first" in ran.err
    assert p2pcloop("export", cloop, tmp_path).code == 2


@pytest.mark.parametrize("name", ["a.cloop", "link.cloop", "mine.delta"])
def test_what_is_exported_is_not_replaced(
    p2pcloop: Run, cloop: Path, overlay: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "link.cloop").hardlink_to(cloop)
    before = cloop.read_bytes(), overlay.read_bytes()
    ran = p2pcloop("export", cloop, tmp_path / name, "--overlay", overlay, "--force")
    assert (ran.code, ran.out) == (2, "")
    assert "is what is exported" in ran.err
    assert (cloop.read_bytes(), overlay.read_bytes()) == before
