"""`p2pcloop verify` of files that lie here."""

from pathlib import Path

import pytest

from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.overlay import Overlay
from tests.support.command import Run
from tests.support.images import make_image, write_cloop_file
from tools.knoppix_cd import make_cd

RAW = make_image(300_000)


def test_whole_files(p2pcloop: Run, tmp_path: Path) -> None:
    cloop = write_cloop_file(tmp_path / "a.cloop", RAW)
    raw = tmp_path / "raw.img"
    raw.write_bytes(RAW)
    for path in (cloop, raw):
        ran = p2pcloop("verify", path)
        assert (ran.code, ran.err) == (0, "")
        assert "300.0 kB read" in ran.out if path is raw else "read and decoded" in ran.out
    told = p2pcloop("verify", raw, "--json").json
    assert told == {"file": str(raw), "format": "raw", "checked": 300_000}


@pytest.mark.interop
def test_a_cd_with_a_cloop_is_decoded(p2pcloop: Run, tmp_path: Path) -> None:
    make_cd(tmp_path / "cd.iso", [write_cloop_file(tmp_path / "a.cloop", RAW)])
    ran = p2pcloop("verify", tmp_path / "cd.iso")
    assert (ran.code, "decoded: every block is whole" in ran.out) == (0, True)


def test_a_damaged_block_is_told_by_its_number(p2pcloop: Run, tmp_path: Path) -> None:
    path = write_cloop_file(tmp_path / "a.cloop", RAW)
    with open_cloop(path) as cloop:
        offset, length = cloop.index.extent(2)
    data = bytearray(path.read_bytes())
    data[offset + length // 2] ^= 0x10
    path.write_bytes(data)
    ran = p2pcloop("verify", path)
    assert (ran.code, ran.out) == (3, "")
    assert f"{path}: block 2: " in ran.err
    assert "hint: " in ran.err


def test_overlays(p2pcloop: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.delta"
    with Overlay.create(path, image_id=bytes(range(32)), image_size=64 * 4096) as overlay:
        overlay.write(0, [memoryview(bytes(4096))])
        overlay.prepare_flush()()
    assert "4.1 kB changed, 0 bytes zeroed" in p2pcloop("verify", path).out
    told = p2pcloop("verify", path, "--json").json
    assert (told["format"], told["changed"], told["zeroed"]) == ("overlay", 4096, 0)
    files = tmp_path / "files"
    Overlay.create(files, image_id=bytes(32), image_size=4096, fill=lambda _: None).close()
    assert "its tables are whole" in p2pcloop("verify", files).out
    with path.open("r+b") as file:
        file.seek(4096 + 7)
        file.write(b"?")
    ran = p2pcloop("verify", path)
    assert ran.code == 3
    assert "block 7" in ran.err
