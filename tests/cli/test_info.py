"""`p2pcloop info` of files that lie here."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop import errors
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.manifest import open_manifest, sign_manifest
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.home import Home
from tests.support.cds import make_iso
from tests.support.cloops import FLAGS, build_old, build_v4
from tests.support.command import Run
from tests.support.images import make_image, write_cloop_file
from tests.support.shared_layers import SharedLayer, manifest_of
from tests.support.waiting import BOUND
from tools.knoppix_cd import make_cd

RAW = make_image(300_000)


def test_a_cloop(p2pcloop: Run, tmp_path: Path) -> None:
    path = write_cloop_file(tmp_path / "a.cloop", RAW)
    stored = path.stat().st_size
    assert p2pcloop("info", path, "--json").json == {
        "file": str(path),
        "format": "cloop V2.0",
        "container": [],
        "stored": stored,
        "size": 5 * 65536,
        "header": "first",
        "block_size": 65536,
        "blocks": 5,
        "codecs": {"zlib": 5},
        "seeded_in_place": True,
        "filesystem": "",
        "overlay_mode": None,
        "stored_share": stored / (5 * 65536),
    }
    out = p2pcloop("info", path).out
    assert "cloop V2.0" in out
    assert "(327680 bytes)" in out
    assert "seeded in place  yes" in out


@pytest.mark.parametrize("header", ["first", "last"])
def test_a_cloop_of_many_codecs(p2pcloop: Run, tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.cloop"
    path.write_bytes(build_v4([*FLAGS, Codec.XZ], header_last=header == "last"))
    facts = p2pcloop("info", path, "--json").json
    assert (facts["format"], facts["header"], facts["blocks"]) == ("cloop V4.0", header, 6)
    assert facts["codecs"] == {"zlib": 1, "none": 1, "xz": 2, "lz4": 1, "lzo": 1}
    assert "1 zlib, 1 none, 2 xz, 1 lz4, 1 lzo" in p2pcloop("info", path).out


@pytest.mark.parametrize("version", ["V0.68", "V1.0"])
def test_an_old_cloop(p2pcloop: Run, tmp_path: Path, version: str) -> None:
    path = tmp_path / "a.cloop"
    path.write_bytes(build_old(version, [bytes(4096)] * 2))
    facts = p2pcloop("info", path, "--json").json
    assert (facts["format"], facts["codecs"]) == (f"cloop {version}", {"zlib": 2})


def test_a_cloop_that_has_to_be_repacked(p2pcloop: Run, tmp_path: Path) -> None:
    path = write_cloop_file(tmp_path / "a.cloop", RAW, 512)
    facts = p2pcloop("info", path, "--json").json
    assert (facts["seeded_in_place"], facts["size"]) == (False, 74 * 4096)


@pytest.mark.interop
def test_a_cd_tells_what_on_it_is_the_image(p2pcloop: Run, tmp_path: Path) -> None:
    cloop = write_cloop_file(tmp_path / "a.cloop", RAW)
    path = tmp_path / "cd.iso"
    make_cd(path, [cloop])
    facts = p2pcloop("info", path, "--json").json
    expected = {
        "file": str(path),
        "format": "iso",
        "stored": path.stat().st_size,
        "volume": "KNOPPIX",
        "names": "Rock Ridge",
        "boots": True,
        "images": [
            {
                "name": "KNOPPIX/KNOPPIX",
                "format": "cloop V2.0",
                "stored": cloop.stat().st_size,
                "size": 5 * 65536,
                "filesystem": "",
            }
        ],
        "seeded_in_place": True,
        "size": 5 * 65536,
        "filesystem": "",
        "stored_share": path.stat().st_size / (5 * 65536),
    }
    assert {key: facts[key] for key in expected} == expected
    out = p2pcloop("info", path).out
    assert "KNOPPIX/KNOPPIX: cloop V2.0, " in out
    make_iso(path, {"a": b"a"}, "-r")
    out = p2pcloop("info", path).out
    assert "the CD itself: raw, " in out


@pytest.mark.interop
def test_a_damaged_cd_is_told_in_one_line(p2pcloop: Run, tmp_path: Path) -> None:
    path = make_iso(tmp_path / "cd.iso", {"KNOPPIX/KNOPPIX": RAW})
    path.write_bytes(path.read_bytes()[:-4096])
    ran = p2pcloop("info", path)
    assert ran.code == errors.FormatError.exit_code
    assert f"{path}: it is cut off" in ran.err
    assert ran.out == ""


@pytest.mark.interop
def test_a_raw_image_with_a_file_system(p2pcloop: Run, tmp_path: Path) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(bytes(2 << 20))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", path], check=True, timeout=BOUND)
    facts = p2pcloop("info", path, "--json").json
    assert (facts["format"], facts["size"], facts["filesystem"]) == ("raw", 2 << 20, "ext4")


def test_a_raw_image_of_any_size(p2pcloop: Run, tmp_path: Path) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(RAW)
    facts = p2pcloop("info", path, "--json").json
    assert (facts["stored"], facts["size"]) == (300_000, 300_000)


def test_a_difference_tells_the_true_sizes(p2pcloop: Run, tmp_path: Path) -> None:
    for name, size in (("a.img", 5000), ("b.img", 8000)):
        (tmp_path / name).write_bytes(bytes(size))
    facts = p2pcloop("diff", tmp_path / "a.img", tmp_path / "b.img", "--json").json
    assert facts["sizes"] == [5000, 8000]


def test_an_overlay_tells_how_full_it_is(p2pcloop: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.delta"
    with Overlay.create(path, image_id=bytes(range(32)), image_size=64 * 4096) as overlay:
        overlay.write(4096, [memoryview(bytes(range(256)) * 32)])
        overlay.zero(9, 3)
        overlay.prepare_flush()()
    facts = p2pcloop("info", path, "--json").json
    assert facts["format"] == "overlay"
    assert (facts["size"], facts["changed"], facts["zeroed"]) == (64 * 4096, 8192, 3 * 4096)
    assert facts["changed_share"] == 5 / 64
    assert facts["image_id"] == bytes(range(32)).hex()
    assert facts["manifest"] is None
    text = p2pcloop("info", path).out
    assert "7.8%" in text
    assert "an image file" in text


@pytest.mark.parametrize(
    ("fill", "told"), [(None, 64 * 4096 - 700), (lambda _: None, 64 * 4096)], ids=["block", "files"]
)
def test_an_overlay_tells_the_true_size_of_its_image(
    p2pcloop: Run,
    home: Path,
    tmp_path: Path,
    fill: Callable[[Overlay], None] | None,
    told: int,
) -> None:
    """It holds whole blocks; the manifest knows the device. One of files is a device of its own."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    layer = SharedLayer(tmp_path, 0, {0: 1}, size=64)
    manifest = replace(
        manifest_of([layer]), key=key.public_key().public_bytes_raw(), length=64 * 4096 - 700
    )
    signed = open_manifest(sign_manifest(manifest, key))
    Home.at(home).create()
    (Home.at(home).manifests / signed.id.hex()).write_bytes(signed.data)
    path = tmp_path / "mine.delta"
    Overlay.create(
        path,
        image_id=manifest.image_id,
        image_size=manifest.size,
        manifest_id=signed.id,
        fill=fill,
    ).close()
    assert p2pcloop("info", path, "--json").json["size"] == told
    (Home.at(home).manifests / signed.id.hex()).unlink()
    assert p2pcloop("info", path, "--json").json["size"] == 64 * 4096


def test_an_overlay_in_use_tells_its_last_flush(p2pcloop: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.delta"
    with Overlay.create(path, image_id=bytes(range(32)), image_size=64 * 4096) as overlay:
        overlay.write(0, [memoryview(bytes(4096))])
        overlay.prepare_flush()()
        overlay.write(4096, [memoryview(bytes(4096))])
        facts = p2pcloop("info", path, "--json").json
        assert (facts["in_use"], facts["changed"]) == (True, 4096)
        assert p2pcloop("verify", path).code == errors.BusyError.exit_code
    assert p2pcloop("info", path, "--json").json["in_use"] is False


@pytest.mark.parametrize("damage", ["cut", "index", "preamble"])
def test_a_damaged_cloop(p2pcloop: Run, tmp_path: Path, damage: str) -> None:
    path = write_cloop_file(tmp_path / "a.cloop", RAW)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-5:]
    else:
        data[140 if damage == "index" else 14] ^= 0x7
    path.write_bytes(data)
    ran = p2pcloop("info", path)
    assert ran.code == 3
    assert ran.err.startswith("p2pcloop: ")


def test_an_empty_file(p2pcloop: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    ran = p2pcloop("info", tmp_path / "empty")
    assert (ran.code, ran.out) == (2, "")
    assert "is empty" in ran.err
