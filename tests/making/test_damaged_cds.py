"""CD images that are cut off or flipped anywhere: an error of ours, or the right data."""

import random
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError, UsageError
from p2pcloop.making.local import inspect_file
from p2pcloop.making.opened import OpenImage
from tests.support.cds import NAMES, make_iso
from tests.support.images import make_image, padded, write_cloop_file
from tools.knoppix_cd import make_cd

pytestmark = pytest.mark.interop

RAW = make_image(60_000, 2)


@pytest.fixture(scope="module")
def cd(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """With all that a KNOPPIX has: Rock Ridge, Joliet, El Torito, two images."""
    folder = tmp_path_factory.mktemp("cd")
    images = [write_cloop_file(folder / name, RAW, 8192) for name in ("a", "b")]
    make_cd(folder / "cd.iso", images)
    return (folder / "cd.iso").read_bytes()


def outcome(path: Path, data: bytes | bytearray) -> str:
    """What becomes of a CD image; anything but an error of ours or the right data fails."""
    path.write_bytes(data)
    try:
        file = inspect_file(path)
        with OpenImage(path, file.parts) as image:
            found = image.read(0, image.size)
    except (FormatError, UsageError) as err:
        assert err.hint, err
        assert "\n" not in str(err)
        return "error"
    names = [part.name.upper() for part in file.parts]
    if names == [""]:
        assert found == data  # no KNOPPIX on it any more: all of it, as it is
        return "itself"
    assert len(found) == ((len(names) - 1) << 20) + 65536
    for number in range(len(names)):
        assert found[number << 20 :][:65536] == padded(RAW, 65536)
    return "right"


def test_cut_off_anywhere(tmp_path: Path, cd: bytes) -> None:
    """Also behind the last image: what broke off is told, whatever it would have been."""
    path = tmp_path / "cd.iso"
    assert outcome(path, cd) == "right"
    lengths = range(0, len(cd), len(cd) // 400)
    seen = {outcome(path, cd[:length]) for length in lengths if length > 32774}
    assert seen == {"error"}  # before, it is no CD image


def test_flipped_anywhere(tmp_path: Path, cd: bytes) -> None:
    """Half of the flips in descriptors, directories and path tables, which say where things are."""
    choose = random.Random(1)
    end_of_directories = cd.index(b"#!/bin/sh")
    seen = []
    for number in range(1000):
        damaged = bytearray(cd)
        first, last = (32768, end_of_directories) if number % 2 else (0, len(cd))
        at = choose.randrange(first, last)
        damaged[at] ^= 1 << choose.randrange(8)
        seen.append(outcome(tmp_path / "cd.iso", damaged))
    assert {"error", "right"} <= set(seen)


@pytest.mark.parametrize("names", NAMES)
def test_flips_in_the_directories_of_each_kind(tmp_path: Path, names: str) -> None:
    cloop = write_cloop_file(tmp_path / "cloop", RAW, 8192).read_bytes()
    good = make_iso(tmp_path / "cd.iso", {"KNOPPIX/KNOPPIX": cloop}, *NAMES[names]).read_bytes()
    used = [at for at in range(32768, good.index(b"#!/bin/sh")) if good[at]]
    for at in random.Random(2).sample(used, 150):
        damaged = bytearray(good)
        damaged[at] = ~damaged[at] & 0xFF
        outcome(tmp_path / "cd.iso", damaged)
